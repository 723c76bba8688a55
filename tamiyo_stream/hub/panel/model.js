// The model as a picture: one cell per layer in depth order, seeds below the layers they watch.
const NS = 'http://www.w3.org/2000/svg';
const PAD = 6, MAX_COLUMN = 58, DENSE_FROM = 90;
// Height of a row, its middle, the room for cells, and the narrowest column; large models are drawn denser.
const ROOMY = { row: 128, mid: 54, room: 78, least: 19 }, DENSE = { row: 92, mid: 36, room: 50, least: 9 };
const FAMILIES = [
  ['--t0', 'linear', /linear|dense|gemm|proj|mlp/], ['--t1', 'convolution', /conv|pool/],
  ['--t2', 'normalisation', /norm/], ['--t3', 'attention, embedding', /att|embed|rnn|lstm|gru/],
  ['--t4', 'other', /./],
];
export const IDLE = new Set(['UNKNOWN', 'DORMANT', 'TERMINATED', 'CULLED', 'EMBARGOED', 'RESETTING']);

export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const family = (type) => FAMILIES.find(([, , test]) => test.test(type.toLowerCase()));
const short = (value) => value >= 1e6 ? `${+(value / 1e6).toPrecision(3)} M` : value >= 1e3 ? `${+(value / 1e3).toPrecision(3)} k` : `${value}`;

/** Where each cell goes: columns by depth, as many per row as fit. */
function layout(cells, width) {
  const depths = [...new Set(cells.map((cell) => cell.depth))].sort((a, b) => a - b);
  const size = depths.length > DENSE_FROM ? DENSE : ROOMY;
  const perRow = Math.max(1, Math.min(depths.length, Math.floor((width - 2 * PAD) / size.least)));
  const rows = Math.ceil(depths.length / perRow), even = Math.ceil(depths.length / rows);
  const column = Math.min(MAX_COLUMN, (width - 2 * PAD) / even);
  const left = (width - column * even) / 2, rank = new Map(depths.map((depth, i) => [depth, i]));
  const stacked = new Map();
  for (const cell of cells) stacked.set(cell.depth, (stacked.get(cell.depth) || 0) + 1);
  const placed = new Map();
  const most = Math.max(1, ...cells.map((cell) => Math.log1p(cell.parameters || 0)));
  const boxes = cells.map((cell) => {
    const i = rank.get(cell.depth), row = Math.floor(i / even), n = stacked.get(cell.depth), k = placed.get(cell.depth) || 0;
    placed.set(cell.depth, k + 1);
    const room = size.room / n, high = Math.min(room - 3, size.room * (0.2 + 0.55 * (Math.log1p(cell.parameters || 0) / most)));
    const x = left + (i % even) * column, y = row * size.row + size.mid - size.room / 2 + room * (k + 0.5);
    return { x: x + column / 2, y, row, i, w: Math.max(5, Math.min(34, column - (size === DENSE ? 2 : 7))), h: Math.max(5, high) };
  });
  return { boxes, column, size, height: rows * size.row + 4 };
}

export class ModelPicture {
  constructor(host, tell) {
    Object.assign(this, { host, tell, picture: null, width: 0, targets: [], at: -1 });
    host.addEventListener('keydown', (event) => this.key(event));
    new ResizeObserver(() => { if (Math.abs(host.clientWidth - this.width) > 2) this.draw(); }).observe(host);
  }

  show(picture, run) {
    this.run = run;
    if (picture !== this.picture) { this.picture = picture; this.draw(); } else this.update();
  }

  draw() {
    this.width = this.host.clientWidth;
    this.host.replaceChildren();
    this.seedKey = null;
    if (!this.picture || !this.width) return;
    const { cells, lines } = this.picture, at = layout(cells, this.width);
    this.at_ = at;
    const root = svg('svg', { viewBox: `0 0 ${this.width} ${at.height}`, height: at.height, role: 'listbox', tabindex: 0,
      'aria-label': `${this.picture.layers} layers of ${this.picture.blueprint}`, id: 'model-svg' });
    this.bands(root, cells, at);
    const wires = svg('g', { 'aria-hidden': 'true' });
    for (const [from, to] of lines) wires.append(this.wire(at.boxes[from], at.boxes[to]));
    this.ties = svg('g', { 'aria-hidden': 'true' });
    root.append(wires, this.ties);
    this.nodes = cells.map((cell, i) => {
      const node = this.cell(cell, at.boxes[i], i);
      root.append(node.group);
      return node;
    });
    this.seedGroup = svg('g', {});
    root.append(this.seedGroup);
    this.root = root;
    this.host.append(root);
    this.update();
  }

  bands(root, cells, at) {
    const spans = new Map();
    cells.forEach((cell, i) => {
      if (!cell.block) return;
      const box = at.boxes[i], key = `${cell.block} ${box.row}`, span = spans.get(key) || { name: cell.block, row: box.row, from: box.x, to: box.x };
      span.from = Math.min(span.from, box.x); span.to = Math.max(span.to, box.x);
      spans.set(key, span);
    });
    for (const span of spans.values()) {
      const x = span.from - at.column / 2 + 1.5, width = span.to - span.from + at.column - 3, y = span.row * at.size.row + 1;
      root.append(svg('rect', { class: 'band', x, y, width, height: at.size.row - 8, rx: 7 }));
      if (width > span.name.length * 6) root.append(Object.assign(svg('text', { class: 'band-name', x: x + 6, y: y + 12 }), { textContent: span.name }));
    }
  }

  wire(from, to) {
    if (from.row !== to.row) { // goes on in the next row
      const stub = (box, dx) => `M${box.x} ${box.y} h${dx}`;
      return svg('path', { class: 'wire', d: `${stub(from, this.at_.column * 0.45)} ${stub(to, -this.at_.column * 0.45)}` });
    }
    const span = Math.abs(to.i - from.i), middle = (from.x + to.x) / 2;
    if (span <= 1) return svg('path', { class: 'wire', d: `M${from.x} ${from.y} C${middle} ${from.y} ${middle} ${to.y} ${to.x} ${to.y}` });
    const rise = Math.max(from.row * this.at_.size.row + (this.at_.size === DENSE ? 4 : 16), Math.min(from.y, to.y) - 14 - 9 * Math.sqrt(span));
    return svg('path', { class: 'wire', d: `M${from.x} ${from.y - from.h / 2} C${from.x} ${rise} ${to.x} ${rise} ${to.x} ${to.y - to.h / 2}` });
  }

  cell(cell, box, i) {
    const x = box.x - box.w / 2, y = box.y - box.h / 2, r = Math.min(5, box.w / 3, box.h / 3);
    const halo = svg('rect', { class: 'halo', x: x - 3, y: y - 3, width: box.w + 6, height: box.h + 6, rx: r + 3 });
    const body = svg('rect', { class: 'body', x, y, width: box.w, height: box.h, rx: r });
    body.style.fill = `var(${family(cell.type)[0]})`;
    const level = svg('rect', { class: 'level', x: x + 1, y: y + box.h, width: box.w - 2, height: 0, rx: Math.max(0, r - 1) });
    const group = svg('g', { class: 'cell', role: 'option', id: `cell-${i}` }, halo, body, level);
    const node = { group, halo, level, box, cell, i };
    group.addEventListener('pointerenter', () => this.select(i));
    return node;
  }

  update() {
    if (!this.root || !this.run) return;
    const heat = this.run.heat || [], known = heat.filter((value) => value > 0).map(Math.log10);
    const low = Math.min(...known), high = Math.max(...known);
    for (const node of this.nodes) {
      const value = heat[node.i], inner = node.box.h - 2;
      const share = value > 0 ? (high > low ? 0.08 + 0.92 * (Math.log10(value) - low) / (high - low) : 0.5) : 0;
      node.level.setAttribute('height', share * inner);
      node.level.setAttribute('y', node.box.y + node.box.h / 2 - 1 - share * inner);
      const attention = this.run.attention[node.i] || 0;
      node.halo.style.opacity = attention > 0 ? 0.35 + Math.min(0.65, attention * 3) : 0;
      node.halo.style.strokeWidth = 1.5 + Math.min(2.5, attention * 8);
      node.group.setAttribute('aria-label', this.describeCell(node.i));
    }
    const key = JSON.stringify(this.run.seeds);
    if (key !== this.seedKey) { this.seedKey = key; this.drawSeeds(); }
    this.targets = [...this.nodes.map((node) => node.group), ...this.seedNodes];
    if (this.at >= 0) this.mark();
  }

  drawSeeds() {
    this.seedGroup.replaceChildren();
    this.ties.replaceChildren();
    const taken = [];
    this.seedNodes = [];
    this.shown = this.run.seeds.filter((seed) => seed.cells.length);
    this.shown.forEach((seed, k) => {
      const boxes = seed.cells.map((i) => this.at_.boxes[i]), row = boxes[0].row, here = boxes.filter((box) => box.row === row);
      let x = here.reduce((sum, box) => sum + box.x, 0) / here.length;
      const y = row * this.at_.size.row + this.at_.size.mid + (this.at_.size === DENSE ? 37 : 52);
      x = Math.max(14, Math.min(this.width - 14, x));
      while (taken.some((other) => other.row === row && Math.abs(other.x - x) < 27)) x += 27;
      if (x > this.width - 14) x = Math.max(14, this.width - 14);
      taken.push({ x, row });
      for (const box of here) this.ties.append(svg('path', { class: 'tie', d: `M${box.x} ${box.y + box.h / 2} Q${box.x} ${y - 12} ${x} ${y - 8}` }));
      const around = 2 * Math.PI * 5, alpha = Math.max(0, Math.min(1, seed.alpha || 0));
      const group = svg('g', { class: `seed${IDLE.has(seed.stage) ? ' idle' : ''}`, role: 'option', id: `seed-${k}`, 'aria-label': this.describeSeed(seed) },
        svg('circle', { class: 'core', cx: x, cy: y, r: 8.5 }),
        svg('circle', { class: 'alpha', cx: x, cy: y, r: 5, 'stroke-dasharray': `${around * alpha} ${around}`, transform: `rotate(-90 ${x} ${y})` }));
      group.addEventListener('pointerenter', () => this.select(this.nodes.length + k));
      this.seedGroup.append(group);
      this.seedNodes.push(group);
    });
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const end = { Home: 0, End: this.targets.length - 1 }[event.key];
    if (!this.targets.length || (step === undefined && end === undefined)) return;
    event.preventDefault();
    this.select(end !== undefined ? end : Math.max(0, Math.min(this.targets.length - 1, this.at + step)));
  }

  select(at) { this.at = at; this.mark(); }

  mark() {
    for (const node of this.root.querySelectorAll('.on')) node.classList.remove('on');
    const node = this.targets[this.at];
    if (!node) return;
    node.classList.add('on');
    this.root.setAttribute('aria-activedescendant', node.id);
    this.tell(node.getAttribute('aria-label'));
  }

  describeCell(i) {
    const cell = this.picture.cells[i], heat = this.run.heat && this.run.heat[i], attention = this.run.attention[i];
    const seeds = this.run.seeds.filter((seed) => seed.cells.includes(i)).map((seed) => seed.id);
    return [cell.name, cell.layers > 1 ? `${cell.layers} layers, mostly ${cell.type}` : cell.type,
      cell.parameters != null && `${short(cell.parameters)} parameters`, heat != null && `gradient norm ${heat.toPrecision(3)}`,
      attention && `${(attention * 100).toFixed(0)} % of the attention`, seeds.length && `watched by ${seeds.join(', ')}`].filter(Boolean).join(' · ');
  }

  describeSeed(seed) {
    return [`seed ${seed.id}`, seed.stage.toLowerCase(), seed.alpha != null && `alpha ${seed.alpha.toFixed(2)}`, seed.blueprint && `carries ${seed.blueprint}`,
      seed.risk != null && `risk ${seed.risk.toFixed(2)}`, `watches ${seed.cells.length} layers`].filter(Boolean).join(' · ');
  }

  /** Legend entries for what is in the picture: [svg, text]. */
  legend() {
    if (!this.picture) return [];
    const inUse = new Set(this.picture.cells.map((cell) => family(cell.type)[0]));
    const icon = (...nodes) => svg('svg', { viewBox: '0 0 18 14', 'aria-hidden': 'true' }, ...nodes);
    const entries = FAMILIES.filter(([name]) => inUse.has(name)).map(([name, text]) => {
      const rect = svg('rect', { x: 2, y: 2, width: 14, height: 10, rx: 3 });
      rect.style.fill = `var(${name})`;
      return [icon(rect), text];
    });
    const level = svg('rect', { x: 2, y: 7, width: 14, height: 5, rx: 2 }); level.style.fill = 'var(--level)'; level.style.opacity = 0.55;
    const halo = svg('rect', { x: 2, y: 2, width: 14, height: 10, rx: 3, fill: 'none', 'stroke-width': 2.2 }); halo.style.stroke = 'var(--halo)';
    const ring = svg('circle', { cx: 9, cy: 7, r: 5.5, fill: 'none', 'stroke-width': 1.6 }); ring.style.stroke = 'var(--seed)';
    const pie = svg('circle', { cx: 9, cy: 7, r: 2.6, fill: 'none', 'stroke-width': 3.4, 'stroke-dasharray': '8 99' }); pie.style.stroke = 'var(--seed)';
    return [...entries, [icon(level), 'fill: gradient norm'], [icon(halo), 'ring: what the decision attends to'], [icon(ring, pie), 'seed, filled by alpha']];
  }
}
