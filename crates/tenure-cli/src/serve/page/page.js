// Shows the events of /v1/events. What comes from the store was written by others: it is only ever shown as text.
"use strict";

const TOKEN_KEY = "tenure-token";
/** The sidecar sends at least a comment every 10 s. */
const SILENCE_MS = 15_000;
/** After this time without an answer, what is shown may be old. */
const CONNECT_MS = 3_000;
const MAX_DELAY_MS = 15_000;
/** A tab in the background stops reading after this time, so that a forgotten one does not cost the store anything. */
const BACKGROUND_MS = 60_000;
const ANNOUNCE_EVERY_MS = 4_000;
const HIGHLIGHT_MS = 10_000;
const SHOWN_CHANGES = 20;

const at = id => document.getElementById(id);
const prefix = new URLSearchParams(location.search).get("prefix") ?? "";

/** What is shown. */
const state = {
  /** The last snapshot, and when the store was read last. */
  snapshot: null,
  readAt: null,
  /** Why nothing is received, and since when; null while events are. */
  lost: null,
  /** Whether this connection has sent a snapshot. */
  isCurrent: false,
  /** The server's time, and this page's time when it was. */
  clock: null,
};

// ---- Text

/** Without line breaks and invisible characters, of which some change the direction of the text around them. */
function printable(text) {
  return text.replace(/[\p{C}\p{Zl}\p{Zp}\p{Gr_Ext}\u115F\u1160\u2800\u3164\uFFA0]|[^\S ]/gu, character => {
    const short = { "\n": "\\n", "\t": "\\t", "\r": "\\r" }[character];
    return short ?? `\\u{${character.codePointAt(0).toString(16)}}`;
  });
}

/** An element with children, which are elements or text. */
function element(name, properties = {}, ...children) {
  const { role, label, ...others } = properties;
  const made = Object.assign(document.createElement(name), others);
  if (role) made.setAttribute("role", role);
  if (label) made.dataset.label = label;
  made.append(...children);
  return made;
}

/** Text of others, isolated from the direction of what is around it. */
const foreign = text => element("bdi", { className: "code" }, printable(text) || "(empty)");

/** Changes a text only if it differs, so that selections and screen readers are not disturbed. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const two = number => String(number).padStart(2, "0");

/** The time of day in the viewer's time zone; with the date, if it is not today. */
function timeText(time) {
  const date = new Date(time);
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const clock = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return date.toDateString() === new Date(now()).toDateString() ? clock : `${day} ${clock}`;
}

const timeElement = time => element("time", { dateTime: time }, timeText(time));

function durationText(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}

const sinceText = tracked =>
  (tracked.start_observed ? "" : "≥ ") + durationText(asOf() - Date.parse(tracked.since));

/** The sidecar's time: the viewer's clock may be wrong. */
const now = () => (state.clock ? state.clock.server + performance.now() - state.clock.page : Date.now());

function setClock(server) {
  if (!Number.isNaN(server)) state.clock = { server, page: performance.now() };
}

/** Whether who leads now is not known. */
const isOld = () => Boolean(state.lost || state.snapshot?.outage || !state.readAt);

/** The time up to which something is known. */
const asOf = () => (isOld() ? Date.parse(state.readAt) : now());

// ---- What is received

const TOKEN_NEEDED = "this sidecar needs a token";

class TokenNeeded extends Error {}

function storedToken() {
  try {
    return sessionStorage.getItem(TOKEN_KEY);
  } catch {
    return state.token ?? null;
  }
}

function storeToken(token) {
  state.token = token;
  try {
    if (token === null) sessionStorage.removeItem(TOKEN_KEY);
    else sessionStorage.setItem(TOKEN_KEY, token);
  } catch {
    // Then it is asked for again when the page is loaded again.
  }
}

/** Ends what is received now, or the pause before the next attempt. */
let interrupt = () => {};

/** Receives events until the connection ends. */
async function receive() {
  const aborter = new AbortController();
  interrupt = () => aborter.abort();
  let timer;
  state.isCurrent = false;
  const late = setTimeout(() => lose("the sidecar does not answer"), CONNECT_MS);
  const expectMore = () => {
    clearTimeout(timer);
    timer = setTimeout(() => aborter.abort(), SILENCE_MS);
  };
  try {
    expectMore();
    const token = storedToken();
    const response = await fetch(`v1/events?prefix=${encodeURIComponent(prefix)}`, {
      headers: token === null ? {} : { Authorization: `Bearer ${token}` },
      credentials: "omit",
      redirect: "error",
      signal: aborter.signal,
    });
    clearTimeout(late);
    if (response.status === 401) throw new TokenNeeded();
    if (!response.ok) {
      const { error } = await response.json();
      throw new Error(`the sidecar refuses: ${printable(String(error.message))}`);
    }
    setClock(Date.parse(response.headers.get("Date")));
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      expectMore();
      text += value;
      const events = text.split("\n\n");
      text = events.pop();
      events.forEach(handle);
      heard();
    }
  } finally {
    clearTimeout(late);
    clearTimeout(timer);
    aborter.abort();
  }
}

/** Handles one event, or a comment. */
function handle(event) {
  const [, name, data] = /^event: (\w+)\ndata: (.*)$/su.exec(event) ?? [];
  // Numbers above 2^53 lose digits in JavaScript, and tokens can be such.
  const exact = (key, value, context) => {
    if (key !== "token" || value === null) return value;
    return context?.source ?? (Number.isSafeInteger(value) ? String(value) : `≈ ${value}`);
  };
  if (name === "snapshot") {
    const before = state.snapshot;
    state.snapshot = JSON.parse(data, exact);
    // Of another connection: this snapshot shows what an outage has left of it, perhaps nothing.
    if (!state.isCurrent && state.snapshot.outage) state.readAt = null;
    state.isCurrent = true;
    announceChanges(before);
  } else if (name === "reading") {
    state.readAt = JSON.parse(data).time;
    if (Date.parse(state.readAt) > now()) setClock(Date.parse(state.readAt));
  }
}

/** Something was received. What an earlier connection has sent stays old until there is a new snapshot. */
function heard() {
  if (state.isCurrent) state.lost = null;
  render();
}

/** Connects again and again. */
async function run() {
  let delay = 0;
  for (;;) {
    const began = performance.now();
    let problem = null;
    try {
      await receive();
    } catch (error) {
      if (error instanceof TokenNeeded) {
        lose(TOKEN_NEEDED);
        await askForToken();
        delay = 0;
        continue;
      }
      // Errors of `fetch` have no text that helps.
      const isOwn = error instanceof Error && error.message.startsWith("the sidecar");
      problem = isOwn ? error.message : "the sidecar does not answer";
    }
    if (document.hidden && state.paused) {
      lose("this tab was in the background");
      await new Promise(resolve => { interrupt = resolve; });
      delay = 0;
      continue;
    }
    // A connection is ended after ten minutes; the next one begins at once.
    if (problem === null && performance.now() - began > 1000) {
      delay = 0;
      continue;
    }
    lose(problem ?? "the sidecar closes every connection");
    delay = Math.min(MAX_DELAY_MS, Math.max(1000, delay * 2));
    const pause = delay * (0.75 + Math.random() / 2);
    await new Promise(resolve => {
      interrupt = resolve;
      setTimeout(resolve, pause);
    });
  }
}

function lose(problem) {
  state.lost = { since: state.lost?.since ?? new Date(now()).toISOString(), problem };
  render();
}

/** Waits for a token. */
function askForToken() {
  const form = at("token-form");
  const wasRefused = storedToken() !== null;
  storeToken(null);
  form.hidden = false;
  setText(at("token-problem"), wasRefused ? "The sidecar has refused this token." : "");
  at("token").value = "";
  at("token").focus();
  return new Promise(resolve => {
    form.onsubmit = event => {
      event.preventDefault();
      const token = at("token").value.trim();
      if (!/^[\x21-\x7E]+$/.test(token)) {
        setText(at("token-problem"), "A token has only visible ASCII characters.");
        return;
      }
      storeToken(token);
      form.hidden = true;
      resolve();
    };
  });
}

let background;
document.addEventListener("visibilitychange", () => {
  clearTimeout(background);
  if (document.hidden) {
    background = setTimeout(() => { state.paused = true; interrupt(); }, BACKGROUND_MS);
  } else {
    if (state.paused || state.lost) interrupt();
    state.paused = false;
  }
});
addEventListener("online", () => { if (state.lost) interrupt(); });

// ---- Announcements: few, whatever happens

let pending = [];
let announceTimer = null;
let announcedAt = -ANNOUNCE_EVERY_MS;

function announce(text) {
  pending.push(text);
  const wait = Math.max(0, announcedAt + ANNOUNCE_EVERY_MS - performance.now());
  announceTimer ??= setTimeout(() => {
    announceTimer = null;
    announcedAt = performance.now();
    const count = pending.length;
    at("announcer").textContent = count > 3 ? `${count} leaders have changed.` : pending.join(" ");
    pending = [];
  }, wait);
}

const changeKey = change => JSON.stringify(change);

function announceChanges(before) {
  if (!before) return;
  const known = new Set(before.changes.map(changeKey));
  for (const change of state.snapshot.changes.filter(change => !known.has(changeKey(change))).reverse()) {
    const leader = change.leader ? `${printable(change.leader.id)} leads` : "vacant";
    announce(`${change.election}: ${leader}.`);
  }
}

// ---- What is shown

/** The row of each election, and what it shows. */
const rows = new Map();
let shownDetails = null;

function render() {
  renderState();
  const { snapshot, readAt } = state;
  const selected = selectedElection();
  at("list").hidden = !readAt || selected !== null;
  at("details").hidden = !readAt || selected === null;
  renderPrefix();
  if (!snapshot || !readAt) return;
  setText(at("leader-header"), isOld() ? `Leader at ${timeText(readAt)}` : "Leader");
  if (selected === null) renderList();
  else renderDetails(selected);
}

function renderState() {
  const { lost, snapshot, readAt } = state;
  const store = snapshot?.store ?? "";
  setText(at("store"), printable(store) + (prefix ? `, names that begin with ${printable(prefix)}` : ""));
  const read = readAt ? `read at ${timeText(readAt)}` : "";
  let [kind, text, notice] = ["live", `Live, ${read}`, ""];
  const old = readAt ? `This was ${read}. Who leads now is not known.` : "Nothing is known yet.";
  if (lost) {
    // Nobody has lost anything before the token is given.
    const isBeginning = lost.problem === TOKEN_NEEDED && !readAt;
    [kind, text] = ["old", isBeginning ? "Token needed" : readAt ? `Old, ${read}` : "Not connected"];
    notice = isBeginning ? "" : `Not connected since ${timeText(lost.since)}: ${lost.problem}. ${old}`;
  } else if (snapshot?.outage) {
    const { since, error } = snapshot.outage;
    [kind, text] = ["old", readAt ? `Old, ${read}` : "No answer from the store"];
    const reason = error ? `: ${printable(error)}` : "";
    notice = `No answer from ${printable(store)} since ${timeText(since)}${reason}. ${old} The command tenure doctor examines the store.`;
  } else if (!readAt) {
    [kind, text] = ["connecting", "Connecting"];
  }
  at("state").dataset.state = kind;
  setText(at("state"), text);
  setText(at("notice"), notice);
  at("notice").hidden = !notice;
}

function renderPrefix() {
  const { snapshot } = state;
  at("prefix-form").hidden = !prefix && !snapshot?.truncated;
  const count = snapshot?.elections.length;
  setText(at("prefix-text"), snapshot?.truncated
    ? `These are the first ${count} of ${snapshot.total} elections. Give the beginning of their names to see others.`
    : "Showing elections whose names begin with this.");
}

const filterText = () => at("filter").value.trim().toLowerCase();

function matches(tracked, filter) {
  const { election, leader } = tracked;
  const texts = [election, printable(leader?.id ?? "nobody"), printable(leader?.session ?? "")];
  return texts.some(text => text.toLowerCase().includes(filter));
}

function renderList() {
  const { elections } = state.snapshot;
  const names = new Set(elections.map(tracked => tracked.election));
  for (const [name, row] of rows) {
    if (!names.has(name)) {
      row.row.remove();
      rows.delete(name);
    }
  }
  const body = at("rows");
  const filter = filterText();
  let next = body.firstElementChild;
  let shown = 0;
  for (const tracked of elections) {
    let row = rows.get(tracked.election);
    if (!row) {
      row = newRow(tracked.election);
      rows.set(tracked.election, row);
    }
    if (row.row === next) next = next.nextElementSibling;
    else body.insertBefore(row.row, next);
    updateRow(row, tracked);
    row.row.hidden = !matches(tracked, filter);
    shown += row.row.hidden ? 0 : 1;
  }
  const count = `${elections.length} ${elections.length === 1 ? "election" : "elections"}`;
  const as = isOld() ? `, as of ${timeText(state.readAt)}` : "";
  setText(at("caption"), (filter ? `${shown} of ${count}` : count) + as);
  at("empty").hidden = shown > 0;
  at("elections").hidden = elections.length === 0;
  const none = isOld() ? "No election had a candidate then." : "No election has a candidate.";
  setText(at("empty"), elections.length === 0 ? none : "No election matches the filter.");
  renderChanges(at("changes"), state.snapshot.changes, true);
}

function newRow(name) {
  const cell = (label, className) => element("td", { role: "cell", label, className });
  const link = element("a", { href: `#election=${name}` }, name);
  const row = {
    row: element("tr", { role: "row" }, element("th", { role: "rowheader", scope: "row", className: "wide" }, link)),
    link,
    leader: cell("Leader", "leader wide"),
    since: cell("For", "since"),
    waiting: cell("Waiting", "number"),
    token: cell("Token", "number"),
    session: cell("Session", ""),
    term: undefined,
  };
  row.row.append(row.leader, row.since, row.waiting, row.token, row.session);
  return row;
}

const vacantText = () => (isOld() ? `nobody at ${timeText(state.readAt)}` : "nobody");
const vacantElement = () => element("span", { className: "vacant" }, vacantText());

function updateRow(row, tracked) {
  const { leader } = tracked;
  const term = leader && JSON.stringify([leader.session, leader.token]);
  if (row.term !== undefined && row.term !== term) {
    row.row.classList.add("changed");
    clearTimeout(row.timer);
    row.timer = setTimeout(() => row.row.classList.remove("changed"), HIGHLIGHT_MS);
  }
  row.term = term;
  // A leader can have any id, also that text.
  const shown = JSON.stringify(leader ? [leader.id] : vacantText());
  if (row.shown !== shown) {
    row.shown = shown;
    row.leader.replaceChildren(leader ? foreign(leader.id) : vacantElement());
  }
  setText(row.since, sinceText(tracked));
  setText(row.waiting, String(Math.max(0, tracked.candidate_count - 1)));
  setText(row.token, leader?.token ?? "-");
  const session = leader ? printable(leader.session) || "(empty)" : "-";
  if (row.session.textContent !== session) {
    row.session.replaceChildren(leader ? foreign(leader.session) : session);
  }
}

function renderChanges(list, changes, withElection) {
  const shown = changes.slice(0, SHOWN_CHANGES);
  const key = JSON.stringify([shown, new Date(now()).toDateString()]);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  const item = change => {
    const line = element("li", {}, timeElement(change.time), " ");
    if (withElection) line.append(element("a", { href: `#election=${change.election}` }, change.election), ": ");
    line.append(...(change.leader ? [foreign(change.leader.id), " leads"] : ["vacant"]));
    if (change.leader?.token) line.append(` with token ${change.leader.token}`);
    if (change.previous) line.append(", after ", foreign(change.previous.id));
    return line;
  };
  list.replaceChildren(...(shown.length ? shown.map(item) : [element("li", {}, "No changes since the sidecar began to read.")]));
}

/** The election whose details are shown. */
function selectedElection() {
  return /^#election=([\w.-]+)$/u.exec(location.hash)?.[1] ?? null;
}

function renderDetails(name) {
  const tracked = state.snapshot.elections.find(tracked => tracked.election === name);
  setText(at("details-name"), name);
  at("facts").hidden = at("queue-table").parentElement.hidden = !tracked;
  at("details-missing").hidden = Boolean(tracked);
  const when = isOld() ? `When the store was read last, at ${timeText(state.readAt)}, this` : "This";
  setText(at("details-missing"), state.snapshot.truncated
    ? "There are more elections than are read: who leads this one is not known."
    : `${when} election had no candidate.`);
  renderChanges(at("details-changes"), state.snapshot.changes.filter(change => change.election === name), false);
  const key = JSON.stringify([tracked, isOld() && state.readAt]);
  if (tracked && shownDetails !== key) {
    shownDetails = key;
    const { leader } = tracked;
    const fact = (name, ...value) => [element("dt", {}, name), element("dd", {}, ...value)];
    at("facts").replaceChildren(
      ...fact("Leader", leader ? foreign(leader.id) : vacantElement()),
      ...fact("For", element("span", { id: "details-since" }), ", seen since ", timeElement(tracked.since)),
      ...(leader ? [
        ...fact("Fencing token", element("span", { className: "code" }, leader.token ?? "-")),
        ...fact("Session", foreign(leader.session)),
        ...fact("Value", valueElement(leader.value)),
      ] : []),
    );
    at("queue").replaceChildren(...tracked.candidates.map(candidateRow));
    const { candidates, candidate_count: count } = tracked;
    const all = `${count} ${count === 1 ? "candidate" : "candidates"} in the queue`;
    setText(at("queue-caption"), count > candidates.length ? `The first ${candidates.length} of ${all}` : all);
  }
  if (tracked) setText(at("details-since"), sinceText(tracked));
}

function valueElement(value) {
  return value === "" ? element("span", {}, "-") : foreign(value);
}

function candidateRow(candidate, index) {
  const cell = (label, className, ...children) => element("td", { role: "cell", label, className }, ...children);
  return element("tr", { role: "row" },
    cell("Position", "number", index === 0 ? "1, leads" : String(index + 1)),
    element("th", { role: "rowheader", scope: "row", className: "wide" }, foreign(candidate.id)),
    cell("Session", "wide", foreign(candidate.session)),
    cell("Value", "wide", valueElement(candidate.value)));
}

// ---- What the viewer does

let lastSelected = selectedElection();

function select() {
  const selected = selectedElection();
  document.title = selected ? `${selected} - Elections - tenure` : "Elections - tenure";
  render();
  if (selected) at("details-name").focus();
  else rows.get(lastSelected)?.link.focus();
  lastSelected = selected;
}

let filterTimer;
at("filter").addEventListener("input", () => {
  render();
  clearTimeout(filterTimer);
  filterTimer = setTimeout(() => setText(at("announcer"), `${at("caption").textContent}.`), 700);
});
at("prefix-form").addEventListener("submit", event => {
  event.preventDefault();
  const given = at("prefix").value.trim();
  location.assign(given ? `?prefix=${encodeURIComponent(given)}` : location.pathname);
});
addEventListener("hashchange", select);

at("prefix").value = prefix;
at("zone").textContent = `Times are in your time zone, ${Intl.DateTimeFormat().resolvedOptions().timeZone}.`;
// Durations grow while nothing is received.
setInterval(() => { if (state.readAt && !document.hidden) render(); }, 1000);
run();
