# `make demo` and `make test` set up what they need; python3 (3.10-3.14) and make are enough.

# A sourced ROS distribution gets an environment of its own, and so do the wheels of another than Kilted
# (ROS=jazzy), so that two kinds of rclpy never mix.
ROS ?= kilted
VENV := .venv$(if $(ROS_DISTRO),-$(ROS_DISTRO),$(if $(filter-out kilted,$(ROS)),-$(ROS)-wheels))
WHEELS := $(if $(ROS_DISTRO),,$(if $(filter-out kilted,$(ROS)),ROS_DISTRO=$(ROS)))
PYTHON := $(VENV)/bin/python
FILLED := $(VENV)/.filled

BAG ?=
TOPIC ?=
MODEL ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types docs release-check audit clean

help:
	@echo "make demo             play a thermal stream to the node over DDS; picture in out/demo/"
	@echo "make demo BAG=path    the same with your rosbag2; TOPIC=/image/topic MODEL=name-or-path"
	@echo "make test             all tests; ARGS='-k replay' is handed to pytest"
	@echo "make test ROS=jazzy   the same on the wheels of that distribution (make demo too)"
	@echo "make setup            fill $(VENV) (the others do it when needed)"
	@echo "make lint             ruff check and format, mypy (make types: mypy alone)"
	@echo "make docs             the documentation as a site: out/site/index.html (its search: python3 -m http.server -d out/site)"
	@echo "make release-check    versions agree; sdist and wheel build, install and run; is it tagged?"
	@echo "make audit            known vulnerabilities of what is installed (asks over the network)"
	@echo "make clean            remove build products and out/"

setup: $(FILLED)

$(FILLED): setup.py setup.cfg scripts/fill_venv.sh $(wildcard scripts/constraints*.txt)
	scripts/fill_venv.sh $(VENV) $(ROS)
	@touch $@

demo: $(FILLED)
	$(WHEELS) $(PYTHON) -m difiisr_ros.cli demo $(if $(BAG),--bag "$(BAG)") $(if $(TOPIC),--topic "$(TOPIC)") \
	    $(if $(MODEL),--model "$(MODEL)") $(ARGS)

# A process for each core, one thread each: what a file's tests share is made once.
test: $(FILLED)
	$(WHEELS) OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(PYTHON) -m pytest -q -n logical --dist loadfile $(ARGS)

lint: $(FILLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(MAKE) types

# Folders under the names that they are imported by, which an editable install keeps from mypy.
types: $(FILLED)
	mkdir -p out/typed
	ln -sfn ../../models out/typed/difiisr_models
	ln -sfn ../../training out/typed/difiisr_training
	$(PYTHON) -m mypy

docs: $(FILLED)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

release-check: $(FILLED)
	$(PYTHON) -m pytest -q test/unit/test_packaging.py
	@git tag --points-at HEAD | grep -qxF "$$($(PYTHON) setup.py --version)" || echo "still to do: git tag $$($(PYTHON) setup.py --version)"

audit: $(FILLED)
	$(PYTHON) -m pip install -q pip-audit
	$(PYTHON) -m pip_audit --skip-editable

clean:
	rm -rf build dist install log out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
