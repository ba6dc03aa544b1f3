"use strict";
// Every case is JSON beside its article, and is drawn when the reader comes near it.

const LEVELS = 127;
const PALE = 0.65; // behind words, which must stay readable
const RAMP = bytes(JSON.parse(document.getElementById("ramp").textContent));
const VIEWS = ["overlay", "map", "picture"];
const SCALES = ["own", "shared"];
const DRAWN = new Set(["svg", "g", "line", "polyline"]);
const SVG = new DOMParser().parseFromString("<svg></svg>", "text/html").body.firstChild.namespaceURI;
const cards = new Map();

// ------------------------------------------------------------------------------------------- small tools
function bytes(text) {
  return Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
}

function make(tag, attributes = {}, ...children) {
  const element = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter(child => child != null));
  return element;
}

let names = 0;
const fresh = prefix => `${prefix}-${++names}`;
const figures = value => (value === 0 ? "0" : `${value > 0 ? "+" : "−"}${Math.abs(value).toPrecision(3)}`);

// Radio buttons, shown as chips.
function chips(kind, options, chosen, change, say = option => option) {
  if (options.length < 2) return null;
  const group = fresh(kind);
  return make("fieldset", { "data-kind": kind }, make("legend", {}, kind), options.map(option =>
    make("label", { class: "chip" },
      make("input", { type: "radio", name: group, value: option, checked: option === chosen, onchange: () => change(option) }),
      make("span", {}, say(option)))));
}

// Many names: type to find one, or walk through them.
function finder(kind, options, chosen, change) {
  const list = make("datalist", { id: fresh(kind) }, options.map(name => make("option", { value: name })));
  const box = make("input", { type: "search", list: list.id, value: chosen, "aria-label": `${kind}: type to find one of ${options.length}` });
  const walk = step => {
    const at = (options.indexOf(box.dataset.chosen) + step + options.length) % options.length;
    change(options[at]);
  };
  box.dataset.chosen = chosen;
  box.addEventListener("focus", () => box.select());
  box.addEventListener("change", () => {
    const typed = box.value.trim().toLowerCase();
    const found = options.find(name => name.toLowerCase() === typed) ?? options.find(name => typed && name.toLowerCase().includes(typed));
    if (found !== undefined) change(found);
    else box.value = box.dataset.chosen;
  });
  const button = (sign, label, step) => make("button", { type: "button", "aria-label": label, onclick: () => walk(step) }, sign);
  return make("fieldset", { "data-kind": kind }, make("legend", {}, kind), box, list,
    button("‹", `previous ${kind}`, -1), button("›", `next ${kind}`, 1));
}

function choose(kind, options, chosen, change, say) {
  return options.length > 10 ? finder(kind, options, chosen, change) : chips(kind, options, chosen, change, say);
}

// Show what was chosen elsewhere.
function mark(root, kind, value) {
  for (const field of root.querySelectorAll(`[data-kind="${kind}"]`)) {
    for (const input of field.querySelectorAll("input")) {
      if (input.type === "radio") input.checked = input.value === value;
      else input.value = input.dataset.chosen = value;
    }
  }
}

function slider(label, most, at, say, change) {
  const input = make("input", { type: "range", min: 0, max: most, step: 1, class: "long", "aria-label": label, "aria-valuetext": say(at) });
  input.value = at;
  input.addEventListener("input", () => {
    input.setAttribute("aria-valuetext", say(Number(input.value)));
    change(Number(input.value));
  });
  return input;
}

// ------------------------------------------------------------------------------------------- maps
// All values of some maps, each in units of its limit / LEVELS.
function numbersOf({ values, levels }) {
  const kind = levels === LEVELS ? Int8Array : Int16Array;
  return Float32Array.from(new kind(bytes(values).buffer), value => value * LEVELS / levels);
}

// Where each of so many pixels lies between the middles of so many cells.
function steps(cells, pixels) {
  return Array.from({ length: pixels }, (_, i) => {
    const at = Math.min(Math.max((i + 0.5) * cells / pixels - 0.5, 0), cells - 1);
    const low = Math.floor(at);
    return [low, Math.min(low + 1, cells - 1), at - low];
  });
}

// The values of a map (h, w) at every pixel of a picture, linear between.
function spread(values, [h, w], [H, W]) {
  if (h === H && w === W) return values;
  const out = new Float32Array(H * W), across = steps(w, W);
  steps(h, H).forEach(([top, bottom, down], y) => across.forEach(([left, right, aside], x) => {
    const above = values[top * w + left] * (1 - aside) + values[top * w + right] * aside;
    const below = values[bottom * w + left] * (1 - aside) + values[bottom * w + right] * aside;
    out[y * W + x] = above * (1 - down) + below * down;
  }));
  return out;
}

// One plane of what was sent: of a volume the slice of this number of `depth`.
function plane(values, shape, slice, depth) {
  if (shape.length < 3) return [values, shape.length === 1 ? [1, shape[0]] : shape];
  const [d, h, w] = shape, [low, high, share] = steps(d, depth)[slice];
  const a = values.subarray(low * h * w, (low + 1) * h * w), b = values.subarray(high * h * w, (high + 1) * h * w);
  return [Float32Array.from(a, (value, i) => value * (1 - share) + b[i] * share), [h, w]];
}

function colour(value) {
  return 4 * (Math.max(-LEVELS, Math.min(LEVELS, Math.round(value))) + LEVELS);
}

function tint(canvas, values, [H, W], factor, strength) {
  canvas.width = W;
  canvas.height = H;
  const context = canvas.getContext("2d"), image = context.createImageData(W, H);
  for (let i = 0; i < values.length; i++) {
    const at = colour(values[i] * factor);
    image.data.set(RAMP.subarray(at, at + 4), 4 * i);
    image.data[4 * i + 3] *= strength;
  }
  context.putImageData(image, 0, 0);
}

// What is left out lies under a veil.
function veil(canvas, order, [H, W], count) {
  canvas.width = W;
  canvas.height = H;
  const context = canvas.getContext("2d"), image = context.createImageData(W, H);
  order.forEach((number, i) => image.data.set([128, 128, 128, number && number <= count ? 0 : 205], 4 * i));
  context.putImageData(image, 0, 0);
}

function css(value, strength = 1) {
  const [red, green, blue, opacity] = RAMP.subarray(colour(value), colour(value) + 4);
  return `rgb(${red} ${green} ${blue} / ${(strength * opacity / 255).toFixed(3)})`;
}

// ------------------------------------------------------------------------------------------- what was asked about
// A stage shows what was asked about, alone or under a map. Each kind has `show(map)`, a map being values, their
// shape, `factor` (to colours), `unit` (to what they stand for), and `keep(order, shape, count)`, a part of it.
const STAGES = { picture: pictureStage, volume: pictureStage, text: textStage, table: tableStage };

function pictureStage(view, name) {
  const [H, W] = view.size, depth = view.depth ?? 1;
  const seen = view.kind === "volume" ? make("canvas", { width: W, height: H, role: "img", "aria-label": name })
    : make("img", { src: view.source, width: W, height: H, alt: name });
  const laid = make("canvas", { class: "map", hidden: true, role: "img", "aria-label": "map" });
  const stage = make("div", { class: "stage" }, seen, laid), readout = make("output");
  let shown = null, slice = Math.floor(depth / 2);
  const element = make("figure", { class: `${view.kind} ${view.pixelated ? "pixelated" : ""}` }, stage);
  if (view.kind === "volume") {
    const sheet = new Image();
    const turn = () => {
      const nearest = view.slices.reduce((best, number, i) => (Math.abs(number - slice) < Math.abs(view.slices[best] - slice) ? i : best), 0);
      seen.getContext("2d").drawImage(sheet, 0, nearest * H, W, H, 0, 0, W, H);
    };
    sheet.addEventListener("load", turn);
    sheet.src = view.source;
    const label = make("span", {}, `slice ${slice}`);
    element.append(make("label", {}, label, slider("slice", depth - 1, slice, at => `slice ${at} of ${depth}`, at => {
      slice = at;
      label.textContent = `slice ${at}`;
      turn();
      if (shown) show(shown);
    })));
  }
  element.append(readout);
  stage.addEventListener("pointermove", event => {
    if (!shown?.unit) return;
    const box = stage.getBoundingClientRect(), [values, [h, w]] = plane(shown.values, shown.shape, slice, depth);
    const row = Math.min(h - 1, Math.floor((event.clientY - box.top) / box.height * h));
    const column = Math.min(w - 1, Math.floor((event.clientX - box.left) / box.width * w));
    readout.textContent = `${figures(values[row * w + column] * shown.unit)} at row ${row}, column ${column} of the map (${h} × ${w})`;
  });
  stage.addEventListener("pointerleave", () => { readout.textContent = shown?.caption ?? ""; });
  function show(map) {
    shown = map;
    readout.textContent = map.caption ?? "";
    stage.className = `stage ${map.view === "map" ? "bare" : map.view === "picture" ? "" : "pale"}${view.paper ? " paper" : ""}`;
    laid.hidden = map.view === "picture";
    laid.setAttribute("aria-label", map.label);
    const [values, shape] = plane(map.values, map.shape, slice, depth);
    const size = view.paper && shape[0] === 1 ? [1, Math.max(W, shape[1])] : [H, W];
    tint(laid, spread(values, shape, size), size, map.factor, map.view === "map" ? 1 : map.strength);
  }
  function keep(order, shape, count, label) {
    stage.className = "stage";
    laid.hidden = false;
    laid.setAttribute("aria-label", label);
    veil(laid, order, shape, count);
  }
  return { element, show, keep, readout };
}

function textStage(view) {
  const spans = view.tokens.map(token => make("span", {}, token));
  const readout = make("output"), element = make("figure", {}, make("p", { class: "tokens" }, spans), readout);
  function show(map) {
    readout.textContent = map.caption ?? "";
    spans.forEach((span, i) => {
      const value = figures(map.values[i] * map.unit);
      span.style.background = map.view === "picture" ? "none" : css(map.values[i] * map.factor, PALE);
      span.title = `${view.tokens[i].trim()} ${value}`;
      span.onpointerenter = () => { readout.textContent = span.title; };
    });
  }
  function keep(order, shape, count) {
    spans.forEach((span, i) => { span.className = order[i] && order[i] <= count ? "kept" : "out"; });
  }
  function swap(changed) {
    spans.forEach((span, i) => {
      const at = changed.find(each => each[0] === view.words[i]), first = view.words[i] !== view.words[i - 1];
      span.className = at ? "out" : "";
      if (at && at[1] !== null && first) span.before(make("ins", {}, ` ${at[1]} `));
    });
  }
  return { element, show, keep, swap, readout, wide: true };
}

function tableStage(view) {
  const rows = view.tokens.map(token => ({ bar: make("i"), value: make("td", { class: "value" }), token }));
  const readout = make("output");
  const table = make("table", {}, rows.map(row => make("tr", {}, make("th", { scope: "row" }, row.token), make("td", { class: "bar" }, row.bar), row.value)));
  function show(map) {
    readout.textContent = map.caption ?? "";
    rows.forEach((row, i) => {
      row.value.textContent = figures(map.values[i] * map.unit);
      row.bar.style.width = `${Math.min(100, Math.abs(map.values[i] * map.factor) / LEVELS * 100)}%`;
      row.bar.style.background = css(Math.sign(map.values[i]) * LEVELS);
    });
  }
  return { element: make("figure", {}, table, readout), show, readout, wide: true };
}

// ------------------------------------------------------------------------------------------- why
function whyTab(card) {
  const { data } = card, { groups, sides, note } = data.why;
  for (const group of groups) {
    group.numbers = numbersOf(group);
    group.length = group.shape.reduce((a, b) => a * b, 1);
    group.most = Math.max(...group.limits);
  }
  const contrasts = groups.map(group => group.contrast), foils = [...new Set(groups.flatMap(group => group.foils))];
  const stage = STAGES[data.view.kind](data.view, data.name), question = make("h2"), said = make("p", { "aria-live": "polite" });
  const bars = make("ul", { class: "bars", "aria-label": "Probabilities" });
  const controls = make("div", { class: "controls" });
  const chosen = card.chosen;
  chosen.contrast = contrasts.includes(wished.contrast) ? wished.contrast : contrasts[0];
  chosen.foil = foils.includes(wished.foil) ? wished.foil : groups[0].foils[0];

  function draw() {
    const group = groups.find(each => each.contrast === chosen.contrast);
    const at = Math.max(0, group.foils.indexOf(chosen.foil));
    const limit = chosen.scale === "own" ? group.limits[at] : group.most;
    stage.show({
      values: group.numbers.subarray(at * group.length, (at + 1) * group.length), shape: group.shape,
      factor: limit ? group.limits[at] / limit : 0, unit: group.limits[at] / LEVELS, strength: chosen.strength / 100,
      view: chosen.view, label: `map of ${group.questions[at]} ${group.contrast}`,
      caption: `${group.contrast}: full colour at ±${limit.toPrecision(2)}`,
    });
    question.textContent = group.questions[at];
    said.textContent = group.texts[at];
    listBars(bars, data, group.foils[at]);
    mark(controls, "contrast", group.contrast);
    mark(controls, "foil", group.foils[at]);
    for (const kind of ["view", "scale"]) mark(controls, kind, chosen[kind]);
  }
  // What the reader asked for is kept apart from what could be shown: a detour over a map without foils comes back.
  card.set = (kind, value) => {
    const known = { contrast: contrasts, foil: foils }[kind];
    if (known && !known.includes(value)) return;
    chosen[kind] = value;
    if (kind === "foil" && !groups.find(each => each.contrast === chosen.contrast).foils.includes(value))
      chosen.contrast = groups.find(each => each.foils.includes(value)).contrast;
    draw();
  };
  const alone = (kind, value) => { card.set(kind, value); tools.mixed(kind); };
  const named = name => name || "no foil";
  const strength = slider("strength of the map", 100, chosen.strength, at => `${at}%`, at => alone("strength", at));
  controls.append(...[
    choose("foil", foils, chosen.foil, value => alone("foil", value), named),
    chips("contrast", contrasts, chosen.contrast, value => alone("contrast", value)),
    make("div", { class: "row" }, [
      data.view.kind === "table" ? null : chips("view", VIEWS, chosen.view, value => alone("view", value)),
      foils.length > 1 ? chips("scale", SCALES, chosen.scale, value => alone("scale", value)) : null,
      data.view.kind === "picture" || data.view.kind === "volume" ? make("label", {}, "strength ", strength) : null,
    ].filter(Boolean)),
  ].filter(Boolean));
  strength.classList.remove("long");
  const side = make("div", { class: "side" }, question, said, bars, controls, legend(sides), note ? make("p", { class: "legend" }, note) : null);
  const plain = stage.wide || data.view.kind === "volume" ? null
    : pictureOf(data.view, data.name, "what was asked about");
  card.draw = draw;
  draw();
  return make("div", { class: stage.wide || !plain ? "why wide" : "why" }, plain, stage.element, side);
}

function legend(sides) {
  return make("div", { class: "legend" }, make("span", { class: "against" }, sides[0]), make("i"), make("span", { class: "for" }, sides[1]));
}

function pictureOf(view, name, caption) {
  return make("figure", { class: view.pixelated ? "pixelated" : "" },
    make("img", { src: view.source, width: view.size[1], height: view.size[0], alt: name }), make("figcaption", {}, caption));
}

function listBars(list, { bars, fact }, foil) {
  const first = bars.slice(0, 6), also = bars.filter(([name]) => name === fact || name === foil);
  const shown = bars.filter(bar => first.includes(bar) || also.includes(bar));
  list.hidden = !shown.length;
  list.replaceChildren(...shown.map(([name, p, said]) => {
    const bar = make("i");
    bar.style.width = `${100 * p}%`;
    return make("li", { class: name === fact ? "is-fact" : name === foil ? "is-foil" : "" },
      make("b", { title: name }, name), make("span", { "aria-hidden": "true" }, bar), make("em", {}, said));
  }));
}

// ------------------------------------------------------------------------------------------- what would have to change
function changeTab(card) {
  const { data } = card, body = make("div", { class: "change" });
  const show = number => {
    const found = data.change[number];
    body.replaceChildren(...(found.changed ? swapParts(data, found) : pathParts(card, found)));
    body.classList.toggle("wide", Boolean(found.changed));
  };
  const options = data.change.map((found, i) => `${i + 1}: ${found.question}`);
  const picker = choose("question", options, options[0], value => show(options.indexOf(value)));
  show(0);
  return make("div", {}, picker, body);
}

function heading(found) {
  return [make("h2", {}, found.question ?? "What is enough?"), make("p", {}, make("span", { class: `badge ${found.status}` }, found.status), ` ${found.text}`)];
}

function swapParts(data, found) {
  const stage = textStage(data.view);
  stage.swap(found.changed);
  return [stage.element, make("div", { class: "side" }, ...heading(found))];
}

function pathParts(card, found) {
  const { data } = card, last = found.frames.length - 1, [H, W] = data.view.size;
  const picture = make("img", { src: found.frames[last], width: W, height: H, alt: "" }), caption = make("figcaption");
  const difference = pictureStage(data.view, data.name);
  difference.show({
    values: numbersOf(found), shape: found.shape, factor: 1, unit: found.limits[0] / LEVELS,
    strength: 0.9, view: "overlay", label: "what the answer adds and removes",
    caption: `orange: added, blue: removed; full colour at ±${found.limits[0].toPrecision(2)} of 1`,
  });
  const curves = curvesOf(found.odds);
  const odds = at => ["fact", "foil"].map(who => `${found.odds[who].name} ${found.said[who][at]}`).join(", ");
  const show = at => {
    picture.src = found.frames[at];
    picture.alt = `${data.name}, ${at === 0 ? "where the way begins" : at === last ? "at its end" : `step ${at} of ${last}`}: ${odds(at)}`;
    caption.textContent = `${at === last ? (found.status === "found" ? "answer" : "nearest miss") : `step ${at} of ${last}`}: ${odds(at)}`;
    curves.at(at);
  };
  const walk = slider("way from the image to the answer", last, last, at => `step ${at} of ${last}: ${odds(at)}`, show);
  let timer = 0;
  const blink = make("button", { type: "button", "aria-pressed": "false", onclick: () => {
    clearInterval(timer);
    const on = blink.getAttribute("aria-pressed") === "false";
    blink.setAttribute("aria-pressed", String(on));
    let turned = false;
    timer = on ? setInterval(() => { turned = !turned; picture.src = turned ? data.view.source : found.frames[Number(walk.value)]; }, 700) : 0;
    if (!on) show(Number(walk.value));
  } }, "blink against the image");
  show(last);
  const figure = make("figure", { class: data.view.pixelated ? "pixelated" : "" }, picture, caption, make("div", { class: "controls" }, walk, blink));
  return [figure, difference.element, make("div", { class: "side" }, ...heading(found), curves.element)];
}

function curvesOf(odds) {
  const line = values => values.map((p, i) => `${(100 * i / Math.max(1, values.length - 1)).toFixed(2)},${(100 * (1 - p)).toFixed(2)}`).join(" ");
  const now = make("g", { class: "now" }, make("line", { x1: 0, y1: 0, x2: 0, y2: 100 }));
  const rules = [0, 50, 100].map(y => make("line", { x1: 0, y1: y, x2: 100, y2: y }));
  const kinds = Object.keys(odds).reverse(), points = odds.fact.p.length;
  const told = Object.values(odds).map(({ name, p }) => `${name} from ${(100 * p[0]).toFixed(1)}% to ${(100 * p.at(-1)).toFixed(1)}%`).join(", ");
  const svg = make("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img", "aria-label": `Probabilities: ${told}` },
    make("g", { class: "grid" }, rules), kinds.map(kind => make("polyline", { class: kind, points: line(odds[kind].p) })), now);
  const signs = { fact: "—", foil: "– –", other: "- -" };
  const key = make("ul", {}, Object.entries(odds).map(([kind, { name }]) => make("li", { class: kind }, `${signs[kind]} ${name}`)));
  const element = make("div", { class: "curves" }, svg, key);
  return { element, at: step => now.setAttribute("transform", `translate(${100 * step / Math.max(1, points - 1)} 0)`) };
}

// ------------------------------------------------------------------------------------------- what is enough
function enoughTab(card) {
  const { data } = card, found = data.enough, order = new Uint16Array(bytes(found.order).buffer);
  const stage = STAGES[data.view.kind](data.view, data.name);
  const curves = found.curve.length ? curvesOf({
    fact: { name: data.fact, p: found.curve },
  }) : null;
  const show = count => {
    const part = found.status === "nothing needed" ? found.status : `the first ${count} of ${found.count}`;
    const said = `${part}${found.said[count] ? `: ${data.fact} ${found.said[count]}` : ""}; the whole ${found.whole}`;
    stage.keep(order, found.shape, count, `what is kept of ${data.name}: ${said}`);
    stage.readout.textContent = said;
    curves?.at(count);
  };
  const walk = slider("how many features are kept", found.count, found.count, at => `${at} of ${found.count}`, show);
  show(found.count);
  const plain = stage.wide ? null : pictureOf(data.view, data.name, "the whole");
  return make("div", { class: stage.wide ? "enough wide" : "enough" }, plain, stage.element,
    make("div", { class: "side" }, ...heading({ ...found, question: `What is enough for ${data.fact}?` }),
      found.count > 1 ? make("div", { class: "controls" }, walk) : null, curves?.element));
}

// ------------------------------------------------------------------------------------------- cases
const TABS = [["why", "why", whyTab], ["change", "what would have to change", changeTab], ["enough", "what is enough", enoughTab]];
const wished = { contrast: null, foil: null, view: "overlay", scale: "own", strength: 85 };

const added = []; // what a page that asks adds to every case: called with its article and card

function openCase(article, data) {
  if (cards.has(article)) return cards.get(article);
  data ??= JSON.parse(document.querySelector(`script[data-case="${article.id}"]`).textContent);
  const card = { data, chosen: { ...wished }, set() {} }, tabs = TABS.filter(([key]) => data[key]);
  cards.set(article, card);
  const enlarge = make("button", { type: "button", "aria-pressed": "false", onclick: () => {
    enlarge.setAttribute("aria-pressed", String(article.classList.toggle("large")));
  } }, "enlarge");
  article.addEventListener("click", ({ target }) => { if (target.closest(".stage")) enlarge.click(); });
  article.append(make("div", { class: "head" }, make("a", { href: `#${article.id}`, "aria-label": `link to ${data.name}` }, "#"),
    make("b", {}, data.name), make("span", {}, `says ${saidOf(data)}`), judged(data), enlarge));
  const panels = tabs.map(([key, title, build], i) => {
    const panel = make("div", { role: tabs.length > 1 ? "tabpanel" : null, "aria-label": title, hidden: i > 0, id: fresh("panel") });
    return { key, title, build, panel };
  });
  const fill = ({ panel, build }) => { if (!panel.firstChild) panel.append(build(card)); };
  if (panels.length > 1) {
    const turn = chosen => panels.forEach(each => {
      each.panel.hidden = each !== chosen;
      each.button.setAttribute("aria-selected", String(each === chosen));
      each.button.tabIndex = each === chosen ? 0 : -1;
      if (each === chosen) fill(each);
    });
    panels.forEach((each, i) => {
      each.button = make("button", { type: "button", role: "tab", "aria-controls": each.panel.id, onclick: () => turn(each),
        onkeydown: ({ key }) => {
          const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
          if (!step) return;
          const next = panels[(i + step + panels.length) % panels.length];
          turn(next);
          next.button.focus();
        } }, each.title);
    });
    article.append(make("div", { class: "tabs", role: "tablist", "aria-label": data.name }, panels.map(each => each.button)));
    turn(panels[0]);
  }
  article.append(...panels.map(each => each.panel));
  if (panels.length) fill(panels[0]);
  article.append(reviews.box(article, data));
  for (const each of added) each(article, card);
  return card;
}

const saidOf = ({ bars, fact }) => bars[0]?.[0] ?? fact; // the fact may be another class than the likeliest

function judged(data) {
  if (!data.label) return null;
  const right = data.label === saidOf(data);
  return make("span", { class: right ? "badge" : "badge wrong" }, `${right ? "right" : "wrong"}: labelled ${data.label}`);
}

// ------------------------------------------------------------------------------------------- verdicts and comments
const reviews = {
  key: `ratherthan ${document.title} ${[...document.querySelectorAll("footer dd")].map(each => each.textContent).join(" ")}`,
  read() {
    try { return JSON.parse(localStorage.getItem(this.key)) ?? {}; } catch { return this.kept ?? {}; }
  },
  write(id, value) {
    const all = { ...this.read(), [id]: value };
    this.kept = all;
    try { localStorage.setItem(this.key, JSON.stringify(all)); } catch { /* a browser that keeps nothing: until the page is closed */ }
  },
  box(article, data) {
    const before = this.read()[data.id ?? article.id] ?? { verdict: "", comment: "" };
    const verdict = make("select", {}, ["", "agree", "disagree", "unsure"].map(each => make("option", { value: each, selected: each === before.verdict }, each || "no verdict")));
    const comment = make("textarea", {}, before.comment);
    const keep = () => this.write(data.id ?? article.id, { name: data.name, fact: data.fact, verdict: verdict.value, comment: comment.value });
    verdict.addEventListener("change", keep);
    comment.addEventListener("input", keep);
    return make("details", { open: Boolean(before.verdict || before.comment) }, make("summary", {}, "Your verdict"),
      make("label", {}, "verdict ", verdict), make("label", {}, "comment", comment));
  },
  save() {
    const told = { kind: "ratherthan reviews", schema_version: 1, page: document.title, saved: new Date().toISOString(), reviews: this.read() };
    const link = make("a", { href: `data:application/json;charset=utf-8,${encodeURIComponent(JSON.stringify(told, null, 1))}`, download: "reviews.json" });
    link.click();
  },
};

// ------------------------------------------------------------------------------------------- all cases
const articles = [...document.querySelectorAll("article")];
const tools = {
  mixed(kind) {
    const field = document.querySelector(`#tools [data-all="${kind}"]`);
    if (field) field.value = "";
    mark(document.getElementById("tools"), kind, undefined);
  },
  set(kind, value) {
    wished[kind] = value;
    for (const card of cards.values()) card.set(kind, value);
  },
  build(root) {
    if (!articles.length && !document.getElementById("ask")) return; // tables only
    const first = articles.length && openCase(articles[0]).data, save = make("button", { type: "button", onclick: () => reviews.save() }, "save verdicts");
    const parts = [save];
    if (articles.length > 1) {
      const find = make("input", { type: "search", placeholder: "name or class", "aria-label": "show the cases with this name or class", oninput: () => {
        const text = find.value.toLowerCase();
        for (const each of articles) each.hidden = !`${each.getAttribute("aria-label")} ${each.dataset.fact}`.toLowerCase().includes(text);
      } });
      const list = make("ol", { class: "toc" }, articles.map(each => make("li", {},
        make("a", { href: `#${each.id}` }, `${each.dataset.name}: ${each.dataset.fact}`))));
      parts.unshift(find, ...this.sorted(list));
      if (first.why) parts.unshift(...["contrast", "foil"].map(kind => this.select(kind, first.why.groups)).filter(Boolean),
        chips("view", VIEWS, wished.view, value => this.set("view", value)), chips("scale", SCALES, wished.scale, value => this.set("scale", value)));
      root.append(make("div", { class: "row" }, parts), make("details", {}, make("summary", {}, `contents: ${articles.length} cases`), make("nav", { "aria-label": "contents" }, list)));
    } else root.append(make("div", { class: "row" }, parts));
  },
  sorted(list) {
    const certain = each => Number(each.dataset.p), wrong = each => Number(Boolean(each.dataset.label) && each.dataset.label !== each.dataset.says);
    const orders = { "as given": () => 0, "by name": (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }) };
    if (articles.every(each => each.dataset.p)) orders["least certain first"] = (a, b) => certain(a) - certain(b);
    if (articles.some(wrong)) orders["wrong first"] = (a, b) => wrong(b) - wrong(a);
    const field = make("select", { onchange: () => {
      const order = articles.map((each, i) => ({ each, item: links[i] })).sort((a, b) => orders[field.value](a.each, b.each));
      document.getElementById("cases").append(...order.map(({ each }) => each));
      list.append(...order.map(({ item }) => item));
    } }, Object.keys(orders).map(name => make("option", { value: name }, name)));
    const links = [...list.children];
    return [make("label", {}, "order ", field)];
  },
  select(kind, groups) {
    const options = kind === "contrast" ? groups.map(each => each.contrast) : [...new Set(groups.flatMap(each => each.foils))].filter(Boolean);
    if (options.length < 2 || options.length > 200) return null;
    const field = make("select", { "data-all": kind, onchange: () => field.value && this.set(kind, field.value) },
      make("option", { value: "" }, "each its own"), options.map(name => make("option", { value: name }, name)));
    return make("label", {}, `${kind} `, field);
  },
};

function start() {
  tools.build(document.getElementById("tools"));
  const near = new IntersectionObserver(seen => {
    for (const { isIntersecting, target } of seen) if (isIntersecting) { openCase(target); near.unobserve(target); }
  }, { rootMargin: "900px" });
  articles.forEach(each => near.observe(each));
  addEventListener("beforeprint", () => articles.forEach(each => openCase(each)));
}
addEventListener("DOMContentLoaded", start);
