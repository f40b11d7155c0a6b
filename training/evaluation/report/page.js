// Click a picture: it fills the screen; the arrow keys change the model in the same place.
const dialog = document.querySelector("dialog");
const [picture, label] = [dialog.querySelector("img"), dialog.querySelector("strong")];
let shown = [], at = 0;

function show(step) {
  at = (at + step + shown.length) % shown.length;
  const image = shown[at].querySelector("img");
  picture.src = image.src;
  picture.alt = image.alt;
  label.textContent = `${shown[at].dataset.label} (${at + 1}/${shown.length})`;
}

document.querySelectorAll(".tile button").forEach((button) => {
  button.addEventListener("click", () => {
    const kind = button.className;
    shown = [...button.closest(".tiles").querySelectorAll("button")].filter((b) => b.className === kind);
    at = shown.indexOf(button);
    dialog.classList.toggle("exact", button.closest(".exact") !== null);
    show(0);
    dialog.showModal();
  });
});
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") show(1);
  if (event.key === "ArrowLeft") show(-1);
});
picture.addEventListener("click", () => show(1));
dialog.querySelector(".back").addEventListener("click", () => show(-1));
dialog.querySelector(".next").addEventListener("click", () => show(1));
dialog.querySelector(".close").addEventListener("click", () => dialog.close());
