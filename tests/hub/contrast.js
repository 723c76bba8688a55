// Returns the texts whose contrast with what lies behind them is below 4.5 (WCAG AA).
(() => {
  const rgb = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const linear = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = rgb(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll('h1, h2, p, b, span, li, dt, dd, td, th, button, small, text')) {
    const speaks = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!speaks || node.closest('[hidden], .hidden, .skip') || !node.getClientRects().length) continue;
    const inPicture = node.tagName === 'text', style = getComputedStyle(node);
    const front = light(rgb(inPicture ? style.fill : style.color));
    const back = light(behind(inPicture ? node.closest('.card') : node));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) found.push(`${node.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return found;
})()
