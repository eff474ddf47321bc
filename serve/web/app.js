// Find titles, tick some, see what to take next. Everything that comes from data is set as text, never as markup.

const $ = (id) => document.getElementById(id);
const SHOWN = 12;
const state = { who: "me", picks: new Map(), user: null }; // picks: item id → { item, rating }

// ---- Asking the service -------------------------------------------------------------------------------------------

async function ask(path, { body, signal } = {}) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const response = await fetch(path, { ...options, signal });
  const answer = await response.json().catch(() => null);
  if (!response.ok) throw new Error(answer?.detail ?? `The service answered ${response.status}.`);
  return answer;
}

// Runs the latest call only: a newer one aborts the one under way, whose answer is then never shown.
function latest(work, failed) {
  let current = null;
  return async (...values) => {
    current?.abort();
    const mine = (current = new AbortController());
    try {
      await work(mine.signal, ...values);
    } catch (error) {
      if (!mine.signal.aborted) failed(error);
    }
  };
}

function debounced(call, milliseconds) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), milliseconds);
  };
}

// ---- Elements -----------------------------------------------------------------------------------------------------

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  const { dataset, aria, ...plain } = properties;
  Object.assign(made, plain);
  Object.assign(made.dataset, dataset);
  for (const [name, value] of Object.entries(aria ?? {})) made.setAttribute(`aria-${name}`, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

// "Matrix, The (1999)" reads as "The Matrix": the year stands beside it, the article before it.
function titleOf(item) {
  const title = (item.title || item.item_id).replace(new RegExp(`\\s*\\(${item.year}\\)$`), "");
  return title.replace(/^(.*), (The|A|An)$/, "$2 $1");
}

// The same genres in the same order, the same colour; steps of the golden angle keep near hashes apart.
function hueOf(text) {
  let hash = 7;
  for (const character of text) hash = (hash * 31 + character.codePointAt(0)) % 100_003;
  return (hash * 137.508) % 360;
}

function poster(item) {
  const letters = titleOf(item).replace(/^(The|A|An) /, "").split(/\s+/).slice(0, 2).map((word) => [...word][0] ?? "");
  const made = element("span", { className: "poster", textContent: letters.join("").toUpperCase(), aria: { hidden: "true" } });
  made.style.setProperty("--hue", hueOf(item.genres?.slice(0, 2).join() || titleOf(item)));
  return made;
}

function heading(item) {
  const year = item.year ? element("span", { className: "year", textContent: item.year }) : null;
  return element("span", { className: "name" }, element("span", { className: "title", textContent: titleOf(item) }), " ", year);
}

function chips(item) {
  const genres = (item.genres ?? []).slice(0, 4);
  return element("span", { className: "chips" }, ...genres.map((genre) => element("span", { className: "chip", textContent: genre })));
}

function scoreBar(score, scores) {
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const bar = element("span", { className: "bar", aria: { hidden: "true" } });
  bar.style.setProperty("--part", high > low ? 0.08 + 0.92 * (score - low) / (high - low) : 1);
  const text = Math.abs(score) >= 1000 ? score.toFixed(0) : score.toPrecision(3);
  return element("span", { className: "score" }, bar, element("span", { className: "number", textContent: text, title: "score" }));
}

function pickButton(item) {
  const picked = state.picks.has(item.item_id);
  const button = element("button", { type: "button", className: "pick", textContent: picked ? "✓" : "+" });
  button.setAttribute("aria-pressed", String(picked));
  button.setAttribute("aria-label", `${titleOf(item)}: ${picked ? "in your picks" : "add to your picks"}`);
  button.addEventListener("click", () => toggle(item));
  button.dataset.item = item.item_id;
  return button;
}

function card(entry, scores) {
  const open = element("button", { type: "button", className: "open", title: `${titleOf(entry)}: show similar ones` }, heading(entry));
  open.addEventListener("click", () => showSimilar(entry));
  const body = element("div", { className: "body" }, open, chips(entry), scoreBar(entry.score, scores));
  return element("li", { className: "card" }, poster(entry), body, pickButton(entry));
}

function fillCards(list, items) {
  const scores = items.map((entry) => entry.score);
  list.replaceChildren(...items.map((entry) => card(entry, scores)));
}

// ---- Searching ----------------------------------------------------------------------------------------------------

const search = latest(async (signal, query) => {
  if (!query) return showFound([], "");
  const { items } = await ask(`/v1/items?limit=8&query=${encodeURIComponent(query)}`, { signal });
  showFound(items, items.length ? `${items.length} found` : `Nothing is called “${query}”.`);
}, (error) => showFound([], error.message));

function showFound(items, status) {
  $("found-status").textContent = status;
  $("found").replaceChildren(...items.map(foundRow));
}

function foundRow(item) {
  const box = element("input", { type: "checkbox", checked: state.picks.has(item.item_id) });
  box.addEventListener("change", () => toggle(item));
  box.dataset.item = item.item_id;
  return element("li", {}, element("label", {}, box, heading(item)));
}

// ---- Picks --------------------------------------------------------------------------------------------------------

function toggle(item) {
  if (!state.picks.delete(item.item_id)) state.picks.set(item.item_id, { item, rating: null });
  if (state.who !== "me") choose("me");
  picksChanged();
}

function picksChanged() {
  const picks = [...state.picks.values()].reverse();
  $("liked").replaceChildren(...picks.map(pickRow));
  $("liked-empty").hidden = picks.length > 0;
  $("clear").hidden = picks.length === 0;
  markPicked();
  recommend();
}

function markPicked() {
  for (const box of document.querySelectorAll("#found input")) box.checked = state.picks.has(box.dataset.item);
  for (const button of document.querySelectorAll("button.pick")) {
    const picked = state.picks.has(button.dataset.item);
    button.textContent = picked ? "✓" : "+";
    button.setAttribute("aria-pressed", String(picked));
  }
}

function pickRow(pick) {
  const remove = element("button", { type: "button", className: "icon", textContent: "✕" });
  remove.setAttribute("aria-label", `Remove ${titleOf(pick.item)}`);
  remove.addEventListener("click", () => {
    toggle(pick.item);
    ($("liked").querySelector("button.icon") ?? $("query")).focus();
  });
  return element("li", {}, poster(pick.item), element("div", { className: "body" }, heading(pick.item), stars(pick)), remove);
}

// Five radio buttons, so that arrow keys and screen readers know them; a click on the chosen one takes it back.
function stars(pick) {
  const group = element("fieldset", { className: "stars" });
  group.append(element("legend", { className: "unseen", textContent: `Your rating of ${titleOf(pick.item)}` }));
  for (let value = 1; value <= 5; value++) group.append(star(pick, value));
  return group;
}

function star(pick, value) {
  const input = element("input", { type: "radio", name: `rating-${pick.item.item_id}`, value, checked: pick.rating === value });
  const rate = (rating) => {
    pick.rating = rating;
    recommend();
  };
  input.addEventListener("change", () => rate(value));
  input.addEventListener("click", () => {
    if (input.dataset.was !== "on") return;
    input.checked = false;
    rate(null);
  });
  input.addEventListener("pointerdown", () => (input.dataset.was = input.checked ? "on" : "off"));
  const label = element("label", { title: `${value} of 5` }, input, element("span", { textContent: "★", aria: { hidden: "true" } }));
  label.addEventListener("pointerdown", () => (input.dataset.was = input.checked ? "on" : "off"));
  label.append(element("span", { className: "unseen", textContent: `${value} of 5` }));
  return label;
}

// ---- Recommendations ----------------------------------------------------------------------------------------------

const recommend = latest(async (signal) => {
  $("cards").setAttribute("aria-busy", "true");
  const answer = await ask("/v1/recommend", { body: question(), signal });
  $("cards").setAttribute("aria-busy", "false");
  showAnswer(answer);
}, (error) => {
  $("cards").setAttribute("aria-busy", "false");
  $("next-status").textContent = error.message;
});

function question() {
  if (state.who === "user") return { user: state.user, k: SHOWN };
  const history = [...state.picks.values()].map(({ item, rating }) => rating ? { item: item.item_id, rating } : { item: item.item_id });
  return history.length ? { history, k: SHOWN } : { k: SHOWN };
}

const PATHS = {
  ann: ["ANN", "Found by approximate search in the index"],
  exact: ["exact", "Found by scoring every title"],
  popular: ["popular", "The most taken titles, the same for everybody"],
};

function showAnswer(answer) {
  fillCards($("cards"), answer.items);
  const [name, meaning] = PATHS[answer.path];
  $("next-heading").textContent = answer.path === "popular" ? "Popular with everyone" : state.who === "user" ? `For user ${state.user}` : "For you";
  $("made").replaceChildren(
    element("span", { className: `path ${answer.path}`, textContent: name, title: meaning }),
    element("span", { className: "version", textContent: answer.bundle, title: "Version of the bundle that answered" }),
  );
  $("next-status").textContent = answer.items.length ? explain(answer, meaning) : "Nothing is left to recommend.";
}

function explain(answer, meaning) {
  const why = answer.reason ? `: ${answer.reason}` : "";
  return `${answer.items.length} titles. ${meaning}${why}.`.replace(/\.\.$/, ".");
}

const showSimilar = latest(async (signal, item) => {
  $("similar-heading").textContent = `Like ${titleOf(item)}`;
  $("similar-status").textContent = "Looking…";
  $("similar-cards").replaceChildren();
  if (!$("similar").open) $("similar").showModal();
  const answer = await ask(`/v1/items/${encodeURIComponent(item.item_id)}/similar?k=8`, { signal });
  $("similar-status").textContent = answer.reason ?? "";
  fillCards($("similar-cards"), answer.items);
}, (error) => ($("similar-status").textContent = error.message));

// ---- A known user -------------------------------------------------------------------------------------------------

function choose(who) {
  state.who = who;
  document.querySelector(`input[name=who][value=${who}]`).checked = true;
  $("me").hidden = who !== "me";
  $("user").hidden = who !== "user";
  $("taste-heading").textContent = who === "me" ? "Tell us what you liked" : "What a user took";
}

const openUser = latest(async (signal, id) => {
  state.user = id;
  history.replaceState(null, "", `#user=${encodeURIComponent(id)}`);
  $("history").replaceChildren();
  $("user-status").textContent = "Looking…";
  recommend();
  const user = await ask(`/v1/users/${encodeURIComponent(id)}?limit=50`, { signal });
  $("user-status").textContent = `${user.events} in all; the latest ${user.history.length}, newest first`;
  $("history").replaceChildren(...user.history.map(historyRow));
}, (error) => ($("user-status").textContent = error.message));

function historyRow(event) {
  const when = event.time ? element("time", { textContent: new Date(event.time * 1000).toISOString().slice(0, 10) }) : null;
  const rating = event.rating == null ? null : element("span", { className: "rated", textContent: `★ ${event.rating}` });
  return element("li", {}, poster(event), element("div", { className: "body" }, heading(event), element("span", { className: "when" }, rating, when)));
}

// ---- Start --------------------------------------------------------------------------------------------------------

const searchSoon = debounced(search, 120);
$("query").addEventListener("input", () => searchSoon($("query").value.trim()));
$("clear").addEventListener("click", () => {
  state.picks.clear();
  picksChanged();
  $("query").focus();
});
$("user-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = $("user-id").value.trim();
  if (id) openUser(id);
});
for (const radio of document.querySelectorAll("input[name=who]")) {
  radio.addEventListener("change", () => {
    choose(radio.value);
    if (radio.value === "me") {
      history.replaceState(null, "", location.pathname);
      recommend();
    } else if (state.user) openUser(state.user);
    else $("user-id").focus();
  });
}
$("similar-close").addEventListener("click", () => $("similar").close());
$("similar").addEventListener("click", (event) => event.target === $("similar") && $("similar").close());

async function start() {
  const asked = new URLSearchParams(location.hash.slice(1)).get("user");
  if (asked) {
    choose("user");
    $("user-id").value = asked;
    openUser(asked);
  } else recommend();
  const bundle = await ask("/v1/bundle");
  const count = (number) => number.toLocaleString("en");
  $("bundle").textContent = `${bundle.name} · ${bundle.model} · ${count(bundle.items)} titles · ${count(bundle.users)} users`;
}

start().catch((error) => ($("bundle").textContent = error.message));
