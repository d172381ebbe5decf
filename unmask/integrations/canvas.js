// The widget of anywidget.py: the pictures after the last step, a bar, and a slider back through the steps of this run.
export default {
  render({ model, el }) {
    const make = (name, given = {}) => el.appendChild(Object.assign(document.createElement(name), given));
    const image = make("img", { alt: "no picture yet" });
    const bar = make("progress", { max: 1, value: 0 });
    const slider = make("input", { type: "range", min: 0, max: 0, value: 0 });
    const said = make("output");
    el.classList.add("unmask-canvas");
    slider.setAttribute("aria-label", "step");
    let frames = [];

    function show(at) {
      const { url, number, of, masked } = frames[at];
      image.src = url;
      image.alt = said.value = `step ${number} of ${of}, ${Math.round(100 * masked)} % masked`;
      slider.value = at;
      bar.value = number / of;
    }

    function add() {
      const frame = model.get("frame");
      if (!frame.picture) return; // nothing was drawn yet
      if (frame.number === 1) {
        frames.forEach(({ url }) => URL.revokeObjectURL(url));
        frames = [];
      }
      const following = Number(slider.value) >= frames.length - 1;
      frames.push({ ...frame, url: URL.createObjectURL(new Blob([frame.picture], { type: "image/png" })) });
      slider.max = frames.length - 1;
      if (following || frames.length === 1) show(frames.length - 1);
    }

    slider.addEventListener("input", () => frames.length && show(Number(slider.value)));
    model.on("change:frame", add);
    add();
    return () => {
      model.off("change:frame", add);
      frames.forEach(({ url }) => URL.revokeObjectURL(url));
    };
  },
};
