"use strict";
// Recomputes the tables of the page from its raw values, by the formulas of burgersgd/analysis/statistics.py.

const data = JSON.parse(document.getElementById("data").textContent);
const number = (v) => (v === "inf" ? Infinity : v === "nan" || v === null ? NaN : Number(v));
const sum = (a) => a.reduce((s, v) => s + v, 0);
const mean = (a) => (a.length ? sum(a) / a.length : NaN);
const variance = (a) => { const m = mean(a); return sum(a.map((v) => (v - m) ** 2)) / (a.length - 1); };
const finite = (a) => a.filter((v) => Number.isFinite(v));

// ---- special functions

const LANCZOS = [676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
  12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7];

function logGamma(x) {
  if (x < 0.5) return Math.log(Math.PI / Math.sin(Math.PI * x)) - logGamma(1 - x);
  const t = x + 6.5;
  const s = LANCZOS.reduce((total, c, i) => total + c / (x + i), 0.99999999999980993);
  return 0.5 * Math.log(2 * Math.PI) + (x - 0.5) * Math.log(t) - t + Math.log(s);
}

function gammaP(a, x) { // regularised lower incomplete gamma function
  if (!(x > 0)) return 0;
  const scale = Math.exp(-x + a * Math.log(x) - logGamma(a));
  if (x < a + 1) {
    let term = 1 / a, total = term;
    for (let n = 1; n < 10000 && term > total * 1e-16; n++) { term *= x / (a + n); total += term; }
    return total * scale;
  }
  let b = x + 1 - a, c = 1e300, d = 1 / b, h = d;
  for (let i = 1; i < 10000; i++) {
    const an = -i * (i - a); b += 2;
    d = 1 / (an * d + b); c = b + an / c;
    const step = d * c; h *= step;
    if (Math.abs(step - 1) < 1e-16) break;
  }
  return 1 - scale * h;
}

function betaI(a, b, x) { // regularised incomplete beta function
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - betaI(b, a, 1 - x);
  const front = Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log1p(-x)) / a;
  let c = 1, d = 1 / (1 - (a + b) * x / (a + 1)), h = d;
  for (let m = 1; m < 10000; m++) {
    let n = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / (1 + n * d); c = 1 + n / c; h *= d * c;
    n = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / (1 + n * d); c = 1 + n / c;
    const step = d * c; h *= step;
    if (Math.abs(step - 1) < 1e-16) break;
  }
  return front * h;
}

function bisect(f, low, high) { // smallest x with f(x) >= 0, f increasing
  for (let i = 0; i < 200 && high - low > 1e-15 * Math.max(1, Math.abs(high)); i++) {
    const middle = (low + high) / 2;
    if (f(middle) >= 0) high = middle; else low = middle;
  }
  return high;
}

const tTail = (df, t) => betaI(df / 2, 0.5, df / (df + t * t)) / 2; // P(T > |t|)
function tQuantile(df, tail) { // t with P(T > t) = tail
  let high = 1;
  while (tTail(df, high) > tail) high *= 2;
  return bisect((t) => tail - tTail(df, t), 0, high);
}
const normalCdf = (z) => (z < 0 ? (1 - gammaP(0.5, z * z / 2)) / 2 : (1 + gammaP(0.5, z * z / 2)) / 2);
const normalQuantile = (p) => (p <= 0 ? -Infinity : p >= 1 ? Infinity : bisect((z) => normalCdf(z) - p, -9, 9));

const NODES = [], WEIGHTS = [];
for (let i = 1; i <= 64; i++) { // Gauss-Legendre
  let x = Math.cos(Math.PI * (i - 0.25) / 64.5), slope = 1;
  for (let k = 0; k < 100; k++) {
    let p = 1, q = 0;
    for (let j = 1; j <= 64; j++) [p, q] = [((2 * j - 1) * x * p - (j - 1) * q) / j, p];
    slope = 64 * (x * p - q) / (x * x - 1);
    const step = p / slope; x -= step;
    if (Math.abs(step) < 1e-16) break;
  }
  NODES.push(x); WEIGHTS.push(2 / ((1 - x * x) * slope * slope));
}

function powerTail(shift, df, critical) {
  const clip = (v, low) => Math.min(Math.max(v, low), 9);
  const centre = critical - shift, width = 6 * critical / Math.sqrt(2 * df), low = Math.max(-9, -shift);
  const edges = [low, centre - width, centre + width, 9].map((e) => clip(e, Math.min(low, 9)));
  let total = 0;
  for (let k = 0; k < 3; k++) {
    const half = (edges[k + 1] - edges[k]) / 2, middle = (edges[k + 1] + edges[k]) / 2;
    if (half <= 0) continue;
    for (let i = 0; i < 64; i++) {
      const z = middle + half * NODES[i];
      total += half * WEIGHTS[i] * Math.exp(-z * z / 2) * gammaP(df / 2, df * ((z + shift) / critical) ** 2 / 2);
    }
  }
  return total / Math.sqrt(2 * Math.PI);
}
function power(shift, df, alpha) {
  const critical = tQuantile(df, alpha / 2);
  return powerTail(shift, df, critical) + powerTail(-shift, df, critical);
}

// ---- statistics

function tInterval(a) {
  if (a.length < 2) return [NaN, NaN];
  const half = tQuantile(a.length - 1, 0.025) * Math.sqrt(variance(a)) / Math.sqrt(a.length), m = mean(a);
  return [m - half, m + half];
}

function murmur(h) {
  h ^= h >>> 16; h = Math.imul(h, 0x85ebca6b); h ^= h >>> 13; h = Math.imul(h, 0xc2b2ae35); return (h ^ (h >>> 16)) >>> 0;
}
function quantile(sorted, q) {
  const at = q * (sorted.length - 1), k = Math.floor(at);
  return k + 1 < sorted.length ? sorted[k] + (at - k) * (sorted[k + 1] - sorted[k]) : sorted[k];
}
function bcaInterval(a) {
  const n = a.length, m = mean(a);
  if (n < 2) return [NaN, NaN];
  if (a.every((v) => v === a[0])) return [m, m];
  const drawn = [];
  for (let r = 0; r < 9999; r++) {
    let total = 0;
    for (let j = 0; j < n; j++) total += a[Math.floor(murmur(murmur(r * n + j) ^ 0x5bd1e995) * n / 4294967296)];
    drawn.push(total / n);
  }
  const share = (drawn.filter((v) => v < m).length + drawn.filter((v) => v <= m).length) / 2 / drawn.length;
  const bias = normalQuantile(share), out = a.map((v) => (sum(a) - v) / (n - 1)), centre = mean(out);
  const d = out.map((v) => centre - v);
  const acceleration = sum(d.map((v) => v ** 3)) / (6 * sum(d.map((v) => v ** 2)) ** 1.5);
  drawn.sort((x, y) => x - y);
  return [0.025, 0.975].map((q) => {
    const z = bias + normalQuantile(q);
    return quantile(drawn, normalCdf(bias + z / (1 - acceleration * z)));
  });
}

function median(a) {
  const s = [...a].sort((x, y) => (x < y ? -1 : x > y ? 1 : 0)), n = s.length;
  if (!n) return NaN;
  const low = s[(n - 1) >> 1], high = s[n >> 1];
  return low === high ? low : (low + high) / 2;
}

function signTest(d) {
  const up = d.filter((v) => v > 0).length, down = d.filter((v) => v < 0).length, n = up + down;
  if (!n) return 1;
  let total = 0;
  for (let k = 0; k <= Math.min(up, down); k++) total += Math.exp(logGamma(n + 1) - logGamma(k + 1) - logGamma(n - k + 1) - n * Math.LN2);
  return Math.min(1, 2 * total);
}

function tested(difference, error, df) { // what statistics._p says
  return error === 0 || error <= 1e-12 * Math.abs(difference) ? NaN : 2 * tTail(df, difference / error);
}

function difference(row, base) {
  const units = row.pairs.filter((u) => !Number.isNaN(row.values[u]) && !Number.isNaN(base.values[u]));
  const x = Object.values(row.values).filter((v) => !Number.isNaN(v)), y = Object.values(base.values).filter((v) => !Number.isNaN(v));
  let better = 0;
  for (const a of x) for (const b of y) better += a < b ? 1 : a === b ? 0.5 : 0;
  const found = { pairs: units.length, better: better / (x.length * y.length), interval: [NaN, NaN], p: NaN, error: NaN, df: NaN, sd: NaN };
  if (units.length < 2) {
    const a = finite(x), b = finite(y);
    found.mean = mean(a) - mean(b); found.test = "none";
    if (a.length > 1 && b.length > 1) {
      const u = variance(a) / a.length, v = variance(b) / b.length;
      found.error = Math.sqrt(u + v); found.sd = Math.sqrt(variance(a) + variance(b));
      if (found.error > 0) {
        found.df = (u + v) ** 2 / (u * u / (a.length - 1) + v * v / (b.length - 1));
        const half = tQuantile(found.df, 0.025) * found.error;
        found.interval = [found.mean - half, found.mean + half];
        if (a.length === x.length && b.length === y.length) {
          found.p = tested(found.mean, found.error, found.df);
          if (!Number.isNaN(found.p)) found.test = "Welch";
        }
      }
    }
    return found;
  }
  const d = units.map((u) => row.values[u] - base.values[u]), kept = finite(d), n = kept.length;
  found.mean = mean(kept); found.test = "paired t"; found.df = n - 1;
  if (n > 1) {
    found.sd = Math.sqrt(variance(kept)); found.error = found.sd / Math.sqrt(n);
    if (found.error > 0) found.interval = tInterval(kept);
    found.p = tested(found.mean, found.error, n - 1);
  }
  if (n < d.length || Number.isNaN(found.p)) { found.p = signTest(d); found.test = "sign"; }
  return found;
}

function holm(p, family) {
  const m = Math.max(p.length, family), adjusted = p.map(() => NaN);
  const known = p.map((v, i) => [v, i]).filter(([v]) => !Number.isNaN(v)).sort((a, b) => a[0] - b[0]);
  let largest = 0;
  known.forEach(([v, i], rank) => { largest = Math.max(largest, Math.min(1, (m - rank) * v)); adjusted[i] = largest; });
  return adjusted;
}

function detectable(error, df, alpha) {
  if (!(error > 0) || !(df > 0)) return NaN;
  let low = 0, high = 1;
  while (power(high, df, alpha) < 0.8) { high *= 2; if (high > 1e8) return Infinity; }
  for (let i = 0; i < 60 && high - low > 1e-12 * high; i++) {
    const middle = (low + high) / 2;
    if (power(middle, df, alpha) >= 0.8) high = middle; else low = middle;
  }
  return high * error;
}

function planning(d, sd, alpha) {
  if (!(sd > 0) || Number.isNaN(d)) return NaN;
  const enough = (n) => power(Math.abs(d) * Math.sqrt(n) / sd, n - 1, alpha) >= 0.8;
  let low = 1, high = 2;
  while (!enough(high)) { low = high; high *= 2; if (high > 1000000) return Infinity; }
  while (high - low > 1) { const middle = (low + high) >> 1; if (enough(middle)) high = middle; else low = middle; }
  return high;
}

// ---- text

function fixed(v, decimals, sign) {
  if (Number.isNaN(v)) return "";
  if (!Number.isFinite(v)) return v > 0 ? "inf" : "-inf";
  let text = v.toFixed(decimals);
  if (!/[1-9]/.test(text)) text = text.replace("-", "");
  return sign && /[1-9]/.test(text) && v > 0 ? "+" + text : text;
}
const pWords = (p) => (Number.isNaN(p) ? "" : p < 0.001 ? "<0.001" : fixed(p, 3));

function recompute() {
  const alpha = 0.05 / Math.max(1, data.family), all = [];
  for (const block of data.blocks) {
    const show = (v, sign) => fixed(block.factor * v, block.decimals, sign);
    const ends = (i, sign) => (Number.isNaN(i[0]) ? "" : `${show(i[0], sign)} to ${show(i[1], sign)}`);
    const rows = block.rows.map((r) => {
      const values = {};
      for (const [unit, v] of Object.entries(r.values)) values[unit] = v.length ? mean(v.map(number)) : NaN;
      return { ...r, values };
    });
    block.rows.forEach((r, k) => {
      const every = Object.values(rows[k].values).filter((v) => !Number.isNaN(v)), kept = finite(every);
      const n = kept.length, selected = finite(r.selection.map(number));
      write(block.values_table, k, {
        n: n === r.of ? `${n}` : `${n} of ${r.of}`,
        mean: show(mean(kept)),
        interval: ends(data.bootstrap ? bcaInterval(kept) : tInterval(kept)),
        median: show(median(every)),
        sd: n > 1 ? show(Math.sqrt(variance(kept))) : "",
        lost: `${every.length - n}`,
        selection: fixed(block.selection_factor * mean(selected), block.selection_decimals),
      });
    });
    const base = rows.find((r) => r.baseline);
    rows.filter((r) => base && !r.baseline).forEach((r, k) => all.push([block, k, difference(r, base), show, ends]));
  }
  const adjusted = holm([...all.map(([, , d]) => d.p), ...data.others.map(number)], data.family);
  all.forEach(([block, k, d, show, ends], i) => {
    const n = planning(d.mean, d.sd, alpha);
    write(block.differences_table, k, {
      pairs: `${d.pairs > 1 ? d.pairs : 0}`,
      difference: show(d.mean, true),
      d_interval: ends(d.interval, true),
      test: d.test,
      p: pWords(d.p),
      p_holm: pWords(adjusted[i]),
      better: fixed(d.better, 2),
      detectable: show(detectable(d.error, d.df, alpha)),
      planning: Number.isNaN(n) ? "" : Number.isFinite(n) ? `${n}` : ">1e6",
    });
  });
}

let changed = 0, cells = 0;
function write(table, k, texts) {
  const body = document.getElementById(table);
  if (!body) return;
  const codes = body.dataset.codes.split(" "), line = body.tBodies[0].rows[k];
  codes.forEach((code, i) => {
    if (!(code in texts)) return;
    cells += 1;
    const differs = line.cells[i].textContent !== texts[code];
    line.cells[i].classList.toggle("changed", differs);
    if (differs) { changed += 1; line.cells[i].textContent = texts[code]; }
  });
}

document.getElementById("recompute").addEventListener("click", () => {
  changed = 0; cells = 0;
  for (const input of document.querySelectorAll("input[data-place]")) {
    const [b, r, unit, i] = JSON.parse(input.dataset.place);
    const text = input.value.trim();
    data.blocks[b].rows[r].values[unit][i] = text === "inf" ? "inf" : text === "" || Number.isNaN(Number(text)) ? "nan" : Number(text);
  }
  recompute();
  document.getElementById("outcome").textContent = changed
    ? `${changed} of ${cells} numbers changed (marked)`
    : `all ${cells} numbers are the ones shown before`;
});
