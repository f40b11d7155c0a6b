# CPU: the node, replay and upscale. Written and read; not built by us.
FROM ros:kilted-ros-base
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv python3-opencv ros-kilted-diagnostic-msgs \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /ws/src/difiisr_ros
COPY . .
RUN python3 -m venv --system-site-packages /venv \
    && /venv/bin/pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu \
    && /venv/bin/pip install --no-cache-dir '.[onnx]'
ENV PATH=/venv/bin:$PATH FASTDDS_DEFAULT_PROFILES_FILE=/ws/src/difiisr_ros/config/fastdds.xml OMP_WAIT_POLICY=PASSIVE
CMD ["python", "-m", "difiisr_ros.sr_node", "--ros-args", "--params-file", "config/sr.yaml", "-p", "autostart:=true", \
     "-r", "image_raw:=/thermal/image_raw", "-r", "camera_info:=/thermal/camera_info", "-r", "sr/image_raw:=/thermal/sr", \
     "-r", "sr/camera_info:=/thermal/sr/camera_info"]
