// A page that asks: what `ratherthan serve` adds to the saved one.
const live = JSON.parse(document.getElementById("live").textContent);

const asking = {
  file: null,
  async send(fields, file) {
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) if (value) form.append(name, value);
    if (file) form.append("file", file);
    const answer = await fetch("/ask", { method: "POST", body: form });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
    return told.job;
  },
  // Follow a job until it ends; `show(share)` says how far it is.
  async follow(job, show) {
    for (let wait = 60; ; wait = Math.min(1000, wait * 1.3)) {
      await new Promise(done => setTimeout(done, wait));
      const { status, share, told } = await (await fetch(`/jobs/${job}`)).json();
      show(status, share);
      if (status === "done") return told;
      if (status === "failed" || status === "stopped") throw new Error(told);
    }
  },
  // A line that says how far a question is, and stops it.
  async work(place, fields, file) {
    const bar = make("progress", { max: 1, "aria-label": "how far it is" }), said = make("span", { role: "status" }, "asked");
    let job = null;
    const stop = make("button", { type: "button", onclick: () => job && fetch(`/jobs/${job}`, { method: "DELETE" }) }, "stop");
    place.replaceChildren(bar, said, stop);
    try {
      job = await this.send(fields, file);
      const told = await this.follow(job, (status, share) => {
        said.textContent = status;
        if (share > 0) bar.value = share;
      });
      place.replaceChildren();
      return told;
    } catch (error) {
      place.replaceChildren(make("span", { role: "alert", class: "alert" }, error.message));
      return null;
    }
  },
};

// Show a case anew, as the first.
function place(told, before) {
  const id = before?.id ?? `case-${articles.length + 1}`;
  const article = make("article", { id, "aria-label": `Case: ${told.name}`, "data-name": told.name, "data-fact": told.fact });
  if (before) {
    before.replaceWith(article);
    cards.delete(before);
    articles[articles.indexOf(before)] = article;
  } else {
    document.getElementById("cases").prepend(article);
    articles.unshift(article);
  }
  openCase(article, told);
  return article;
}

// Every case can be asked what would have to change, and what is enough.
added.push((article, card) => {
  if (!card.data.id) return;
  const status = make("div", { class: "row", "aria-live": "polite" }), { id, model, change, enough } = card.data;
  const ask = (what, title, fields) => make("button", { type: "button", onclick: async () => {
    const told = await asking.work(status, { what, case: id, model, ...fields() });
    if (told) place(told, article).querySelectorAll("[role=tab]")[what === "change" ? 1 : told.change ? 2 : 1]?.click();
  } }, title);
  const foil = () => (card.chosen.foil && !card.chosen.foil.startsWith("any of") ? { foil: card.chosen.foil } : {});
  article.lastElementChild.before(make("div", { class: "row controls ask" },
    change ? null : ask("change", "what would have to change?", foil), enough ? null : ask("enough", "what is enough?", () => ({})), status));
});

function build(form) {
  const pick = (name, options) => make("select", { name, "aria-label": name }, options.map(([value, said]) => make("option", { value }, said ?? value)));
  const model = pick("model", live.models.map(each => [each.name]));
  const example = pick("example", [["", "an example …"], ...live.examples.map(each => [each])]);
  const method = pick("method", [["", "usual method"], ...live.methods.map(each => [each])]);
  const file = make("input", { type: "file", "aria-label": "a file of your own" });
  const text = make("textarea", { "aria-label": "your text", placeholder: "your text", maxlength: 2000 });
  const list = make("datalist", { id: "classes" });
  const fact = make("input", { type: "text", list: "classes", placeholder: "what it says", "aria-label": "fact: a class, or what it says" });
  const foil = make("input", { type: "text", list: "classes", placeholder: "each other class", "aria-label": "foil: a class, or each" });
  const status = make("div", { class: "row", "aria-live": "polite" }), input = make("p", { class: "legend" });
  const turn = () => {
    const chosen = live.models.find(each => each.name === model.value);
    list.replaceChildren(...chosen.classes.map(name => make("option", { value: name })));
    text.hidden = chosen.kind !== "text";
    file.hidden = example.hidden = chosen.kind === "text";
    input.textContent = chosen.input;
  };
  model.addEventListener("change", turn);
  example.addEventListener("change", () => { file.value = ""; asking.file = null; });
  file.addEventListener("change", () => { asking.file = file.files[0] ?? null; example.value = ""; });
  form.addEventListener("dragover", event => event.preventDefault());
  form.addEventListener("drop", event => {
    event.preventDefault();
    asking.file = event.dataTransfer.files[0] ?? null;
    status.textContent = asking.file?.name ?? "";
  });
  form.addEventListener("submit", async event => {
    event.preventDefault();
    if (asking.file && asking.file.size > live.largest) {
      status.replaceChildren(make("span", { role: "alert", class: "alert" }, `more than ${live.largest} bytes: choose a smaller file`));
      return;
    }
    const name = text.hidden ? asking.file?.name ?? example.value : text.value;
    const told = await asking.work(status, {
      what: "why", model: model.value, example: asking.file ? "" : example.value, text: text.hidden ? "" : text.value,
      fact: fact.value, foil: foil.value, method: method.value, name,
    }, text.hidden ? asking.file : null);
    if (told) place(told).scrollIntoView({ block: "start" });
  });
  form.append(make("div", { class: "row" }, model, example, file, text),
    make("div", { class: "row" }, make("label", {}, "why ", fact), make("label", {}, "rather than ", foil), list, method,
      make("button", { type: "submit", class: "go" }, "ask")), status, input);
  turn();
}
build(document.getElementById("ask"));
