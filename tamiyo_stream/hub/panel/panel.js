// The operator panel: follows /events and draws what it says. Everything shown is text from the worker: no HTML is built from it.
import { IDLE, ModelPicture, svg } from './model.js';

const STALE_MS = 3000, SILENT_MS = 10000, KEPT = 120, HISTORY_S = 300, HIGH_LAG = 1000;
const GLYPHS = { germinate: '⊕', graft: '⊕', start_grafting: '⊕', optimizer: '∿', pause: '‖', hold: '·', resume: '▸', cull: '×', breaker_open: '◇', breaker_close: '◆' };
const CALM = new Set(['policy', '', 'no_seed_candidates']);
const $ = (id) => document.getElementById(id);
const make = (tag, text = '', attributes = {}) => { const node = document.createElement(tag); if (text !== '') node.textContent = text; for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v); return node; };
const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const num = (value, digits = 3) => value == null ? '–' : Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(1) : String(+value.toPrecision(digits));
const ms = (value) => value == null ? '–' : value < 100 ? value.toFixed(1) : value.toFixed(0);
const percent = (value) => value == null ? '–' : `${+(value * 100).toFixed(value >= 0.995 || value === 0 ? 0 : 1)} %`;
const ago = (value) => value == null ? '–' : value < 1000 ? 'now' : value < 60000 ? `${Math.round(value / 1000)} s` : value < 3600000 ? `${Math.round(value / 60000)} min` : `${(value / 3600000).toFixed(1)} h`;
const words = (code) => code.replaceAll('_', ' ');
const big = (node, text, unit = '', tone = '') => {
  const key = `${text}|${unit}|${tone}`;
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  node.className = `big ${node.classList.contains('word') ? 'word ' : ''}${tone}`;
  node.replaceChildren(text, ...(unit ? [make('small', unit)] : []));
};
const meter = (node, share, tone = '') => { node.className = `meter ${tone}`; node.firstElementChild.style.width = `${Math.max(0, Math.min(1, share || 0)) * 100}%`; };

let state = null, chosen = null, heard = 0, wasOpen = false, source = null, wait = 1000, holding = false, said = '';
const pictures = new Map(), history = new Map(), decisions = [], seen = new Set();
const model = new ModelPicture($('drawing'), (text) => put($('detail'), text));
const run = () => state && state.runs.find((one) => one.id === chosen);

function follow() {
  source = new EventSource('/events');
  source.addEventListener('open', () => { wasOpen = true; wait = 1000; });
  source.addEventListener('state', (event) => { state = JSON.parse(event.data); heard = performance.now(); draw(); });
  source.addEventListener('picture', (event) => { const one = JSON.parse(event.data); pictures.set(one.run, one); });
  source.addEventListener('history', (event) => { for (const [id, rows] of Object.entries(JSON.parse(event.data))) remember(id, rows); drawCharts(); });
  source.addEventListener('decisions', (event) => take(JSON.parse(event.data)));
  source.addEventListener('bye', () => { source.close(); heard = 0; again(); });
  source.addEventListener('error', () => {
    heard = 0;
    link();
    if (source.readyState === EventSource.CLOSED) fetch('/', { method: 'HEAD' }).then((answer) => answer.status === 401 ? location.reload() : again(), again);
  });
}
function again() { setTimeout(follow, wait); wait = Math.min(15000, wait * 2); }

function remember(id, rows) {
  const held = history.get(id) || new Map();
  for (const row of rows) held.set(row[0], row);
  const oldest = rows[rows.length - 1][0] - HISTORY_S;
  for (const second of held.keys()) if (second < oldest) held.delete(second);
  history.set(id, held);
}

function take({ decisions: news, skipped }) {
  for (const one of news) {
    if (seen.has(one.id)) continue;
    seen.add(one.id);
    decisions.unshift(one);
  }
  const perRun = new Map();
  for (let i = 0; i < decisions.length; i++) {
    const n = (perRun.get(decisions[i].run) || 0) + 1;
    perRun.set(decisions[i].run, n);
    if (n > KEPT) { seen.delete(decisions[i].id); decisions.splice(i--, 1); }
  }
  put($('decisions-note'), skipped ? `${skipped} more in the last moment` : '');
  drawDecisions();
}

function link() {
  const silent = heard ? performance.now() - heard : Infinity, root = document.documentElement;
  const [name, tone, text] = !heard ? (wasOpen || state ? ['lost', 'bad', 'disconnected, trying again'] : ['connecting', 'warn', 'connecting'])
    : silent > STALE_MS ? ['stale', 'warn', `no news for ${ago(silent)}`] : ['live', 'good', 'live'];
  root.dataset.link = name;
  $('link').className = `pill ${tone}`;
  put($('link'), text);
  if (name !== 'live') for (const [id, label] of [['live', 'progress'], ['ready', 'claims']]) { $(id).className = 'pill quiet'; put($(id), `${label} unknown`); }
}
setInterval(link, 500);

function pill(id, label, verdict) {
  $(id).className = `pill ${verdict.ok ? 'good' : 'bad'}`;
  $(id).title = verdict.reasons.join('; ');
  put($(id), `${label} ${verdict.ok ? 'ok' : 'no'}`);
}

function draw() {
  link();
  pill('live', 'progress', state.live);
  pill('ready', 'claims', state.ready);
  put($('worker'), state.worker);
  if (!run()) chosen = state.runs.length ? state.runs.reduce((a, b) => (a.age_ms <= b.age_ms ? a : b)).id : null;
  drawTabs();
  drawAlarms();
  $('none').hidden = !!chosen;
  $('board').hidden = !chosen;
  if (!chosen) return;
  drawFigures(run());
  drawModel(run());
  drawSide(run());
}

function drawTabs() {
  const host = $('runs'), key = state.runs.map((one) => one.id).join('\n');
  if (host.dataset.key !== key) {
    host.dataset.key = key;
    host.replaceChildren(...state.runs.map((one) => {
      const tab = make('button', '', { type: 'button', role: 'tab', 'aria-controls': 'run' });
      tab.dataset.run = one.id;
      tab.append(make('i'), make('b', one.id), make('span', '', { class: 'fine' }));
      tab.addEventListener('click', () => choose(one.id));
      return tab;
    }));
  }
  state.runs.forEach((one, k) => {
    const tab = host.children[k], on = one.id === chosen;
    tab.setAttribute('aria-selected', on);
    tab.tabIndex = on ? 0 : -1;
    tab.children[0].className = one.health.status;
    put(tab.children[2], one.age_ms > SILENT_MS ? `silent ${ago(one.age_ms)}` : `${one.health.status.toLowerCase()}`);
  });
}
$('runs').addEventListener('keydown', (event) => {
  const tabs = [...$('runs').children], at = tabs.findIndex((tab) => tab.dataset.run === chosen);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (to === undefined || !tabs[to]) return;
  event.preventDefault();
  choose(tabs[to].dataset.run);
  tabs[to].focus();
});
function choose(id) { chosen = id; $('hold').getAttribute('aria-pressed') === 'true' && toggleHold(); draw(); drawCharts(); drawDecisions(true); }

function drawAlarms() {
  const found = [];
  if (!state.live.ok) found.push(['bad', `No progress: ${state.live.reasons.join('; ')}`]);
  else if (!state.ready.ok) found.push(['warn', `Not claiming: ${state.ready.reasons.join('; ')}`]);
  for (const feed of state.feeds) if (feed.lag > HIGH_LAG) found.push(['warn', `${feed.name} is ${feed.lag} entries behind`]);
  if (state.feeds_age_ms > SILENT_MS) found.push(['warn', `The feeds were last read ${ago(state.feeds_age_ms)} ago`]);
  for (const one of state.runs) {
    if (one.health.status === 'CRITICAL') found.push(['bad', `${one.id} is critical: ${words(one.health.summary)}`]);
    for (const breaker of one.breakers) if (breaker.state === 'OPEN') found.push(['bad', `${one.id}: the ${breaker.name} breaker is open`]);
  }
  const key = JSON.stringify(found.map(([, text]) => text.replace(/\d+/g, '#')));
  if ($('alarms').dataset.key !== key) { $('alarms').dataset.key = key; $('alarms').replaceChildren(...found.map(([tone, text]) => make('p', text, { class: tone }))); }
}

function drawFigures(one) {
  $('board').classList.toggle('silent', one.age_ms > SILENT_MS);
  big($('step'), one.step == null ? '–' : one.step.toLocaleString('en'));
  put($('pace'), one.age_ms > SILENT_MS ? `silent for ${ago(one.age_ms)}` : `${pace(one.id)} · ${one.decisions} answered here`);
  big($('loss'), num(one.loss, 4), one.loss_delta == null ? '' : `${one.loss_delta > 0 ? '+' : '−'}${num(Math.abs(one.loss_delta), 2)}`);
  const { last, p50, p95, budget, late } = one.latency, slow = budget && p95 > budget;
  big($('latency'), ms(last), 'ms', budget && last > budget ? 'bad' : '');
  meter($('latency-meter'), budget ? p95 / budget : 0, slow ? 'bad' : budget && p95 > 0.8 * budget ? 'warn' : '');
  put($('latency-note'), `median ${ms(p50)}, p95 ${ms(p95)}${budget ? ` of ${num(budget)} ms` : ''}${late ? `, ${late} late` : ''}`);
  const grave = one.risk >= 0.85 ? 'bad' : one.risk >= 0.5 ? 'warn' : '';
  big($('risk'), one.risk == null ? '–' : one.risk.toFixed(2), '', grave);
  meter($('risk-meter'), one.risk, grave);
  put($('risk-note'), [one.value != null && `value ${num(one.value, 2)}`, one.bsds_missing > 0 && `${one.bsds_missing} without safety sheet`].filter(Boolean).join(' · '));
  const { average, mandatory } = one.coverage, thin = average == null ? '' : average <= 0.1 ? 'bad' : average < 0.7 ? 'warn' : '';
  big($('coverage'), percent(average), '', thin);
  meter($('coverage-meter'), average, thin);
  put($('coverage-note'), mandatory == null ? '' : `mandatory ${percent(mandatory)}`);
  big($('mode'), one.conservative == null ? '–' : one.conservative ? 'conservative' : 'normal', '', one.conservative ? 'warn' : '');
  const key = JSON.stringify(one.breakers);
  if ($('breakers').dataset.key !== key) {
    $('breakers').dataset.key = key;
    $('breakers').replaceChildren(...one.breakers.map((b) => make('li', `${b.name} ${words(b.state.toLowerCase())}${b.failures ? ` (${b.failures})` : ''}`, { class: b.state })));
  }
}

function pace(id) {
  const rows = [...(history.get(id) || new Map()).values()].sort((a, b) => a[0] - b[0]).slice(-11, -1);
  if (rows.length < 2) return 'starting';
  const steps = rows.reduce((sum, row) => sum + row[1], 0);
  return `${num(steps / (rows[rows.length - 1][0] - rows[0][0] + 1), 2)} per second`;
}

function drawModel(one) {
  const picture = pictures.get(one.id), none = !picture;
  $('detail').hidden = $('legend').hidden = none;
  put($('model-note'), none ? 'no blueprint has arrived' : `${picture.blueprint}, ${picture.layers} layers${picture.layers > picture.cells.length ? `, folded to ${picture.cells.length}` : ''}`);
  const changed = model.picture !== (picture || null);
  model.show(picture || null, one);
  if (changed) $('legend').replaceChildren(...model.legend().map(([icon, text]) => { const item = make('li'); item.append(icon, text); return item; }));
  const key = JSON.stringify(one.seeds);
  if ($('seeds').dataset.key === key) return;
  $('seeds').dataset.key = key;
  $('seeds').replaceChildren(...one.seeds.map((seed) => {
    const item = make('li', '', IDLE.has(seed.stage) ? {} : { class: 'active' });
    item.append(make('b', seed.id), make('span', seed.stage.toLowerCase(), { class: 'stage' }));
    if (seed.alpha) item.append(`α ${seed.alpha.toFixed(2)}`);
    if (seed.blueprint) item.append(make('code', seed.blueprint));
    return item;
  }));
}

function bar(name, share, text, tone = '') {
  const item = make('li'), track = make('div', '', { class: `meter ${tone}` });
  track.append(make('i'));
  track.firstChild.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  item.append(make('span', name, { title: name }), track, make('span', text));
  return item;
}
function rows(node, key, build) { const text = JSON.stringify(key); if (node.dataset.key !== text) { node.dataset.key = text; node.replaceChildren(...build()); } }
const pairs = (list) => list.filter(([, value]) => value != null && value !== '').flatMap(([name, value]) => [make('dt', name), make('dd', String(value))]);

function drawSide(one) {
  const types = Object.entries(one.coverage.types).sort((a, b) => a[1] - b[1]);
  rows($('types'), types, () => types.length ? types.map(([name, share]) => bar(name, share, percent(share), share < 0.3 ? 'bad' : share < 0.7 ? 'warn' : '')) : [make('li', 'not known yet', { class: 'fine' })]);
  const feeds = state.feeds.map((feed) => [feed.name, feed.age_ms == null ? 'empty' : ago(feed.age_ms), feed.lag, feed.pending]);
  rows($('feeds'), feeds, () => feeds.map(([name, newest, lag, pending]) => {
    const row = make('tr');
    row.append(make('td', name.replace(/^oona\./, '')), make('td', newest), make('td', lag == null ? '–' : lag, lag > HIGH_LAG ? { class: 'warn-text' } : {}), make('td', pending == null ? '–' : pending));
    return row;
  }));
  put($('feeds-note'), state.feeds_age_ms > 5000 ? `read ${ago(state.feeds_age_ms)} ago` : '');
  put($('sources'), one.sources.map((s) => `${s.source} ${s.age_ms < 2000 ? 'now' : `${ago(s.age_ms)} ago`}`).join(' · ') || 'nothing has been reported');
  rows($('upstream'), one.upstream, () => pairs(one.upstream.map((figure) => [figure.name, num(figure.value, 4)])));
  const m = state.model;
  rows($('policy'), [m, state.registries], () => m ? pairs([['version', m.version], ['digest', m.digest && m.digest.slice(0, 12)], ['runs on', [m.device, m.precision].filter(Boolean).join(', ')],
    ['compiled', m.compiled == null ? null : m.compiled ? 'yes' : `no${m.compile_reason ? ` (${words(m.compile_reason)})` : ''}`], ['warmed up in', m.warm_ms && `${ms(m.warm_ms)} ms`],
    ['in use since', m.since_ms && new Date(m.since_ms).toLocaleTimeString()], ...Object.entries(state.registries).map(([name, count]) => [`${words(name)} known`, count])]) : [make('dt', 'not known')]);
}

function drawCharts() {
  const held = history.get(chosen), one = run();
  if (!held || !one) return;
  const list = [...held.values()].sort((a, b) => a[0] - b[0]);
  const end = Math.max(list[list.length - 1][0], Math.floor(state.now_ms / 1000));
  chart($('loss-line'), list, 2, end, { height: 34, from: Math.min(...list.map((r) => r[2] ?? Infinity)), label: 'Loss over the last five minutes' });
  const budget = one.latency.budget;
  chart($('latency-line'), list, 3, end, { height: 120, from: 0, limit: budget, area: true, label: 'Slowest decision of each second' });
  const over = budget ? list.filter((row) => row[3] > budget).length : 0;
  put($('time-note'), budget ? (over ? `${over} of ${list.length} s over ${num(budget)} ms` : `all within ${num(budget)} ms`) : '');
}

function chart(node, list, column, end, { height, from, limit, area, label }) {
  const width = node.clientWidth || 300, points = list.filter((row) => row[column] != null);
  node.setAttribute('viewBox', `0 0 ${width} ${height}`);
  node.setAttribute('aria-label', points.length ? `${label}: last ${num(points[points.length - 1][column])}, highest ${num(Math.max(...points.map((p) => p[column])))}` : `${label}: nothing yet`);
  if (!points.length) return node.replaceChildren();
  const start = area ? end - HISTORY_S : points[0][0], top = Math.max(limit ? limit * 1.15 : 0, ...points.map((row) => row[column])), span = top - from || 1;
  const x = (second) => (second - start) / Math.max(1, end - start) * (width - 2) + 1, y = (value) => height - 3 - (value - from) / span * (height - 8);
  let line = '', before = null;
  for (const row of points) { line += `${before != null && row[0] - before <= 5 ? 'L' : 'M'}${x(row[0]).toFixed(1)} ${y(row[column]).toFixed(1)}`; before = row[0]; }
  const parts = [svg('path', { class: 'stroke', d: line })];
  if (limit) {
    parts.push(svg('path', { class: 'limit', d: `M0 ${y(limit)}H${width}` }), Object.assign(svg('text', { x: 4, y: y(limit) - 4 }), { textContent: `budget ${num(limit)} ms` }));
    for (const row of points) if (row[column] > limit) parts.push(svg('circle', { class: 'over', cx: x(row[0]), cy: y(row[column]), r: 2.2 }));
  }
  node.replaceChildren(...parts);
}

// Decisions: neighbours that say the same are one line with a count.
const sameness = (one) => [one.run, one.action, one.seed, one.blueprint, one.reason].join('|');
function groups() {
  const found = [];
  for (const one of decisions) {
    if (one.run !== chosen) continue;
    const last = found[found.length - 1];
    if (last && last.key === sameness(one)) { last.count++; last.first = one; } else found.push({ key: sameness(one), newest: one, first: one, count: 1 });
  }
  return found.slice(0, 40);
}
const isOpen = () => !!$('decisions').querySelector('details[open]');
function drawDecisions(anyway = false) {
  const list = $('decisions'), found = groups();
  if (!anyway && (holding || isOpen())) {
    const fresh = decisions.filter((one) => one.run === chosen).findIndex((one) => one.id === list.dataset.newest);
    $('waiting').hidden = fresh === 0;
    if (fresh !== 0) put($('waiting'), `${fresh < 0 ? `${KEPT}+` : fresh} new: show`);
    return;
  }
  $('waiting').hidden = true;
  list.dataset.newest = found.length ? found[0].newest.id : '';
  const old = new Map([...list.children].map((item) => [item.dataset.first, item]));
  list.replaceChildren(...(found.length ? found.map((group) => line(group, old.get(group.first.id))) : [make('li', 'None yet.', { class: 'fine' })]));
  const top = found[0] && found[0].newest;
  if (top && !CALM.has(top.reason)) say(`${top.run}: ${words(top.action)} because of ${words(top.reason)}`);
}
function say(text) { if (text !== said) { said = text; put($('said'), text); } }

function line(group, old) {
  const one = group.newest, item = old || make('li');
  item.dataset.first = group.first.id;
  const summary = make('summary'), tone = one.action === 'hold' && CALM.has(one.reason) ? 'still' : CALM.has(one.reason) ? '' : one.risk >= 0.85 ? 'bad' : 'warn';
  const target = [one.seed, one.blueprint && `← ${one.blueprint}`, ...Object.entries(one.changes).map(([name, value]) => `${words(name)} ${value > 0 ? '+' : ''}${num(value, 2)}`)].filter(Boolean).join(' ');
  const because = CALM.has(one.reason) ? target || (one.reason === 'policy' ? 'the policy’s own choice' : words(one.reason)) : `${target ? `${target}, ` : ''}${words(one.reason)}`;
  summary.append(make('span', one.step, { class: 'fine', title: new Date(one.at_ms).toLocaleTimeString() }), make('span', words(one.action), { class: 'act', 'data-glyph': GLYPHS[one.action] || '∙', 'data-tone': tone }),
    make('span', because, { class: 'because', title: because }), make('span', one.risk == null ? '' : `risk ${one.risk.toFixed(2)}`, { class: 'fine num risk' }),
    make('span', group.count > 1 ? `×${group.count}` : `${ms(one.latency_ms)} ms`, { class: 'num times' }));
  if (old) { old.querySelector('summary').replaceWith(summary); old.querySelector('details').ontoggle = open(one); return old; }
  const details = make('details');
  details.append(summary);
  details.ontoggle = open(one);
  item.append(details);
  return item;
}
const open = (one) => (event) => {
  const details = event.target, known = details.querySelector('.why');
  if (details.open && !known) details.append(why(one));
  if (!details.open) { if (known) known.remove(); if (!isOpen()) drawDecisions(); }
};

function why(one) {
  const body = make('div', '', { class: 'why' }), told = one.why;
  const part = (title, ...nodes) => { const box = make('div'); box.append(make('h3', title), ...nodes); body.append(box); };
  const attention = (title, shares) => {
    const list = make('ul', '', { class: 'bars' });
    list.append(...Object.entries(shares).map(([name, share]) => bar(name, share, percent(share))));
    if (list.children.length) part(title, list);
  };
  if (told.rules && told.rules.length) {
    const list = make('ul', '', { class: 'rules' });
    for (const rule of told.rules) {
      const item = make('li');
      item.append(make('code', rule.rule), ` ${words(String(rule.signal))} ${typeof rule.value === 'number' ? num(rule.value) : rule.value}${rule.threshold == null || rule.threshold === rule.value ? '' : `, limit ${typeof rule.threshold === 'number' ? num(rule.threshold) : rule.threshold}`}${rule.action === 'none' ? '' : `: ${words(rule.action)}`}`);
      list.append(item);
    }
    part('Rules that fired', list);
  } else part('Rules that fired', make('p', 'none'));
  if (told.choice) part('The network chose', make('p', [words(told.choice.action), told.choice.seed, told.choice.kernel].filter(Boolean).join(' · ')), ...(told.preferred ? [make('p', `It would rather ${words(told.preferred.action)}: ${words(told.preferred.refused)}`, { class: 'fine' })] : []));
  attention('Layers attended to', told.layers || {});
  attention('Seeds attended to', told.seeds || {});
  const facts = make('dl');
  facts.append(...pairs([['answered in', `${ms(one.latency_ms)} ms`], ['risk', one.risk], ['coverage', one.coverage == null ? null : percent(one.coverage)], ['blending', one.method], ['hazard', one.hazard && one.hazard.toLowerCase()],
    ['superseded steps', one.superseded || null], ['policy', one.version], ['at', new Date(one.at_ms).toLocaleTimeString()]]));
  part('Facts', facts);
  return body;
}

function toggleHold() { holding = !holding; $('hold').setAttribute('aria-pressed', holding); put($('hold'), holding ? 'Follow' : 'Hold'); if (!holding) drawDecisions(true); }
$('hold').addEventListener('click', toggleHold);
$('waiting').addEventListener('click', () => { for (const one of $('decisions').querySelectorAll('details[open]')) one.open = false; drawDecisions(true); });

const THEMES = { auto: ['◐ auto', 'as the system'], light: ['○ light', 'light'], dark: ['● dark', 'dark'] };
function theme(name) {
  if (name === 'auto') delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = name;
  put($('theme'), THEMES[name][0]);
  $('theme').setAttribute('aria-label', `Colour theme: ${THEMES[name][1]}`);
  $('theme').dataset.name = name;
}
$('theme').addEventListener('click', () => { const names = Object.keys(THEMES), next = names[(names.indexOf($('theme').dataset.name) + 1) % 3]; localStorage.setItem('theme', next); theme(next); });
theme(THEMES[localStorage.getItem('theme')] ? localStorage.getItem('theme') : 'auto');
addEventListener('resize', drawCharts);
follow();
