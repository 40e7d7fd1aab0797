"use strict";
// Zooms into the confusion matrices: buttons, wheel, drag, keys. Without it they are whole and stand still.
// Lengths are those of the picture; the view is the part of the square of cells that is seen, the same in all of them.
(() => {
  const tools = document.querySelector(".zoom");
  const sheets = [...document.querySelectorAll("svg.matrix")].map((svg) => {
    const all = (selector) => [...svg.querySelectorAll(selector)];
    const { cell, left, top, right, letters, slanted } = Object.fromEntries(
      Object.entries(svg.dataset).map(([key, value]) => [key, Number(value)])
    );
    const rows = all(".rows text"), columns = all(".columns text");
    const side = cell * rows.length;
    return { svg, cell, left, top, right, letters, slanted, rows, columns, side, height: top + side + 4,
      width: left + side + right, window: svg.querySelector(".window"), inner: svg.querySelector(".inner"),
      cells: new Map(all(".cell").map((one) => [one.dataset.at, one])), numbered: slanted === 1, lit: [] };
  });
  if (!tools || !sheets.length) return;
  const said = tools.querySelector("output"), hint = said.textContent;
  const view = { scale: 1, x: 0, y: 0 };
  const largest = Math.max(4, 72 / sheets[0].cell);

  // As report_matrix.py lays it out, with names as large as their rows allow.
  function measures(sheet, scale = view.scale) {
    const font = Math.min(13, 0.9 * sheet.cell * scale);
    const label = 0.56 * font * sheet.letters + 12;
    const left = label + 22, top = (sheet.slanted ? 0.75 * label : label) + 22;
    return { font, left, top, across: sheet.width - left - sheet.right, down: sheet.height - top - 4 };
  }

  function draw(sheet) {
    const { font, left, top, across, down } = measures(sheet), { scale, x, y } = view;
    const set = (element, values) => Object.entries(values).forEach(([key, value]) => element.setAttribute(key, value));
    set(sheet.svg, { "font-size": font });
    set(sheet.window, { x: left, y: top, width: across, height: down });
    set(sheet.inner, { transform: `scale(${scale}) translate(${-x} ${-y})` });
    const lay = (names, from, room, put) => names.forEach((name, k) => {
      const distance = ((k + 0.5) * sheet.cell - from) * scale;
      name.style.display = distance < 0 || distance > room ? "none" : "";
      set(name, put(distance));
    });
    lay(sheet.rows, y, down, (from) => ({ x: left - 6, y: top + from + 0.35 * font }));
    lay(sheet.columns, x, across, (from) => ({
      transform: `translate(${left + from + (sheet.slanted ? 0 : 0.35 * font)} ${top - 6}) rotate(${sheet.slanted ? -45 : -90})`,
    }));
    if (!sheet.numbered && sheet.cell * scale >= 24) number(sheet);
    sheet.svg.classList.toggle("near", sheet.cell * scale >= 24);
    sheet.svg.classList.toggle("zoomed", scale > 1);
  }

  // Numbers in cells that had no room for them, written when they first have.
  function number(sheet) {
    sheet.numbered = true;
    for (const one of sheet.cells.values()) {
      const [, clips, total] = one.querySelector("title").textContent.match(/: (\d+) of (\d+)$/);
      const [row, column] = one.dataset.at.split(" ").map(Number);
      const text = document.createElementNS("http://www.w3.org/2000/svg", "text");
      text.textContent = Math.round((100 * clips) / total);
      text.setAttribute("x", (column + 0.5) * sheet.cell);
      text.setAttribute("y", (row + 0.6) * sheet.cell);
      text.setAttribute("font-size", 0.3 * sheet.cell);
      text.setAttribute("text-anchor", "middle");
      text.setAttribute("class", clips / total > 0.36 ? "number light" : "number");
      one.append(text);
    }
  }

  // The view with another scale, the point (x, y) of the square lying at (px, py) of the picture, as near as may be.
  function look(scale, x, y, px, py) {
    const sheet = shown(), wanted = Math.min(largest, Math.max(1, scale));
    const { left, top, across, down } = measures(sheet, wanted);
    const within = (value, room) => Math.min(Math.max(0, sheet.side - room / wanted), Math.max(0, value));
    view.scale = wanted;
    view.x = within(x - (px - left) / wanted, across);
    view.y = within(y - (py - top) / wanted, down);
    sheets.forEach(draw);
  }

  const shown = () => sheets.find((sheet) => sheet.svg.getClientRects().length) || sheets[0];

  // A point of the picture, and what of the square lies there.
  function at(sheet, px, py) {
    const { left, top, across, down } = measures(sheet);
    return { px, py, x: view.x + (px - left) / view.scale, y: view.y + (py - top) / view.scale,
      inside: px >= left && py >= top && px < left + across && py < top + down };
  }

  function place(sheet, event) {
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(sheet.svg.getScreenCTM().inverse());
    return at(sheet, x, y);
  }

  function middle(sheet) {
    const { left, top, across, down } = measures(sheet);
    return at(sheet, left + across / 2, top + down / 2);
  }

  function zoom(factor, { px, py, x, y } = middle(shown())) {
    look(view.scale * factor, x, y, px, py);
  }

  function move(dx, dy) {
    const { px, py, x, y } = middle(shown());
    look(view.scale, x + dx, y + dy, px, py);
  }

  const whole = () => look(1, 0, 0, 0, 0);
  const near = () => (0.25 * shown().side) / view.scale;
  const acts = {
    "+": () => zoom(1.6), "=": () => zoom(1.6), "-": () => zoom(1 / 1.6), "0": whole,
    ArrowLeft: () => move(-near(), 0), ArrowRight: () => move(near(), 0),
    ArrowUp: () => move(0, -near()), ArrowDown: () => move(0, near()),
    Escape: () => document.activeElement.blur(),
  };

  // What the pointer is on, in words, and the names of its row and column.
  function tell(sheet, where) {
    sheet.lit.forEach((name) => name.classList.remove("lit"));
    sheet.lit = [];
    const row = Math.floor(where.y / sheet.cell), column = Math.floor(where.x / sheet.cell);
    if (!where.inside || !sheet.rows[row] || !sheet.columns[column]) { said.textContent = hint; return; }
    sheet.lit = [sheet.rows[row], sheet.columns[column]];
    sheet.lit.forEach((name) => name.classList.add("lit"));
    const found = sheet.cells.get(`${row} ${column}`), full = (name) => name.querySelector("title").textContent;
    said.textContent = found ? found.querySelector("title").textContent
      : `${full(sheet.rows[row])} taken for ${full(sheet.columns[column])}: none`;
  }

  for (const sheet of sheets) {
    const { svg } = sheet;
    let held = null;
    svg.setAttribute("tabindex", "0");
    svg.addEventListener("wheel", (event) => {
      if (!(event.ctrlKey || event.metaKey || document.activeElement === svg)) return;
      event.preventDefault();
      zoom(Math.exp(-0.002 * event.deltaY), place(sheet, event));
    }, { passive: false });
    svg.addEventListener("dblclick", (event) => zoom(2, place(sheet, event)));
    svg.addEventListener("pointerdown", (event) => {
      if (view.scale === 1 || event.button) return;
      held = place(sheet, event);
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      const now = place(sheet, event);
      if (held) look(view.scale, held.x, held.y, now.px, now.py);
      else tell(sheet, now);
    });
    for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => { held = null; });
    svg.addEventListener("pointerleave", () => tell(sheet, { inside: false }));
    svg.addEventListener("keydown", (event) => {
      const act = !event.ctrlKey && !event.metaKey && acts[event.key];
      if (!act || (view.scale === 1 && event.key.startsWith("Arrow"))) return;
      event.preventDefault();
      act();
    });
  }
  tools.querySelectorAll("button").forEach((button) => button.addEventListener("click", () => acts[button.value]()));
  tools.hidden = false;
})();
