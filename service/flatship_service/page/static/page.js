// The page of a Flatship daemon. Everything that is shown comes from /events and is put in
// as text, never as markup.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const UNKNOWN = "–";
  const HISTORY = 900; // samples
  const SILENCE = 5000; // milliseconds without news that are worth a word
  const RETRY = 10000; // milliseconds, after the daemon has turned us away

  // ---- numbers, written as the programs write them ----

  function scaled(value, base, units) {
    let step = 0;
    while (step < units.length - 1 && Math.round(value * 10) / 10 >= base) { value /= base; step += 1; }
    return `${value.toFixed(step ? 1 : 0)}\u00a0${units[step]}`;
  }
  const size = (n) => n == null ? UNKNOWN : scaled(n, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]);
  const rate = (n) => n == null ? UNKNOWN : scaled(n, 1000, ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"]);
  function duration(seconds) {
    if (seconds == null) return UNKNOWN;
    const whole = Math.round(seconds);
    const two = (n) => String(n).padStart(2, "0");
    if (whole < 60) return `${whole}s`;
    if (whole < 3600) return `${Math.floor(whole / 60)}m\u00a0${two(whole % 60)}s`;
    if (whole < 86400) return `${Math.floor(whole / 3600)}h\u00a0${two(Math.floor(whole % 3600 / 60))}m`;
    return `${Math.floor(whole / 86400)}d\u00a0${two(Math.floor(whole % 86400 / 3600))}h`;
  }
  const ratio = (n) => n == null ? UNKNOWN : `${n.toFixed(n < 100 ? 1 : 0)}×`;
  const percent = (part, whole) => whole ? Math.min(100, Math.floor(part * 100 / whole)) : 100;
  const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  const ago = (seconds) => seconds < 120 ? `${Math.round(seconds)}\u00a0s ago` : `${Number((seconds / 60).toFixed(seconds < 600 ? 1 : 0))}\u00a0min ago`;
  const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

  // ---- elements ----

  const field = (root, name) => root.querySelector(`[data-f="${name}"]`);
  function text(root, name, value) {
    const at = field(root, name);
    if (at.textContent !== value) at.textContent = value;
  }
  function attribute(at, name, value) {
    if (at.getAttribute(name) !== value) at.setAttribute(name, value);
  }
  const width = (at, share) => { at.style.width = `${Math.max(0, Math.min(100, share))}%`; };
  function shape(name, attributes, parent) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (parent) parent.append(made);
    return made;
  }

  /** Keep the children of a list in step with items, each by its key, so that nothing jumps. */
  function listed(list, template, items, key, fill) {
    const have = new Map([...list.children].map((child) => [child.dataset.key, child]));
    const wanted = new Set(items.map((item) => String(key(item))));
    // First of all: what stays is then in its place already, and is not moved from under anyone.
    for (const [name, child] of have) if (!wanted.has(name)) child.remove();
    let before = null;
    for (const item of items) {
      const name = String(key(item));
      let child = have.get(name);
      if (!child) {
        child = byId(template).content.firstElementChild.cloneNode(true);
        child.dataset.key = name;
      }
      fill(child, item);
      const place = before ? before.nextElementSibling : list.firstElementChild;
      if (place !== child) list.insertBefore(child, place);
      before = child;
    }
  }

  // ---- the map of a disk ----

  // In the order of the legend: letter, words, and how much of its cell is filled, so that
  // the states are told apart by more than their colours.
  const STATES = [
    ["u", "nothing yet", 0.3], ["h", "hole", 0.45], ["z", "zeros", 0.5], ["s", "on its way", 0.68],
    ["d", "stored", 0.86], ["p", "proven", 0.86], ["e", "there before", 0.86], ["k", "copied there", 0.86],
  ];
  const WORDS = Object.fromEntries(STATES.map(([letter, words]) => [letter, words]));

  function cell(x, y, part) {
    const room = (1 - part) / 2;
    const side = part.toFixed(2);
    return `M${(x + room).toFixed(2)} ${(y + room).toFixed(2)}h${side}v${side}h-${side}z`;
  }
  function drawMap(svg, map, name, narrow) {
    if (svg.drawn === map + narrow) return;
    svg.drawn = map + narrow;
    const columns = Math.min(map.length, narrow ? 48 : 128);
    const rows = Math.max(1, Math.ceil(map.length / columns));
    attribute(svg, "viewBox", `0 0 ${columns || 1} ${rows}`);
    svg.style.height = `${Math.max(rows * (narrow ? 7 : 8), 10)}px`;
    const counts = {};
    for (const letter of map) counts[letter] = (counts[letter] || 0) + 1;
    for (const [letter, , part] of STATES) {
      let path = svg.querySelector(`.${letter}`);
      if (!counts[letter]) { if (path) path.remove(); continue; }
      let drawn = "";
      for (let index = 0; index < map.length; index += 1) {
        if (map[index] === letter) drawn += cell(index % columns, Math.floor(index / columns), part);
      }
      if (!path) path = shape("path", { class: letter }, svg);
      attribute(path, "d", drawn);
    }
    const shares = STATES.filter(([letter]) => counts[letter])
      .map(([letter]) => `${Math.round(counts[letter] * 100 / map.length)} % ${WORDS[letter]}`);
    attribute(svg, "aria-label", `Map of ${name}: ${shares.join(", ")}`);
  }
  function drawLegend(maps) {
    const legend = byId("legend");
    const present = STATES.filter(([letter]) => maps.some((map) => map.includes(letter)));
    const wanted = present.map(([letter]) => letter).join("");
    if (legend.drawn === wanted) return;
    legend.drawn = wanted;
    legend.replaceChildren(...present.map(([letter, words, part]) => {
      const item = document.createElement("li");
      const svg = shape("svg", { viewBox: "0 0 1 1", "aria-hidden": "true" });
      shape("path", { class: letter, d: cell(0, 0, part) }, svg);
      item.append(svg, words);
      return item;
    }));
  }

  // ---- the chart ----

  let history = []; // [at, rate, limit, level]
  let cursor = null; // index into history
  const LEFT = 74, RIGHT = 14, TOP = 16, BOTTOM = 24, STRIP = 34;

  function steps(highest) {
    // Not the next power of ten: a chart of which half is empty says less.
    const target = Math.max(highest, 1000);
    const power = 10 ** Math.floor(Math.log10(target));
    const top = [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((n) => n * power).find((n) => n >= target * 1.02) || 10 * power;
    return [0, top / 2, top];
  }
  function frame() {
    const box = byId("chart").getBoundingClientRect();
    const last = history.length ? history[history.length - 1][0] : 0;
    const first = history.length ? history[0][0] : 0;
    const span = Math.max(60, Math.min(HISTORY, last - first));
    const levels = history.some((sample) => sample[3] != null);
    return { width: box.width, height: box.height, last, span, levels,
      bottom: box.height - BOTTOM - (levels ? STRIP : 0),
      x: (at) => LEFT + (box.width - LEFT - RIGHT) * (1 - (last - at) / span) };
  }
  function line(samples, x, y) {
    let path = "", before = null;
    for (const sample of samples) {
      const value = y(sample);
      if (value == null) { before = null; continue; }
      const joined = before != null && sample[0] - before < 5; // where nothing was measured, nothing is drawn
      path += `${joined ? "L" : "M"}${x(sample[0]).toFixed(1)} ${value.toFixed(1)}`;
      before = sample[0];
    }
    return path;
  }
  function drawChart() {
    const svg = byId("chart-svg");
    const at = frame();
    if (!at.width) return;
    const highest = history.reduce((most, sample) => Math.max(most, sample[1], sample[2] || 0), 0);
    const marks = steps(highest);
    const top = marks[marks.length - 1];
    const y = (value) => at.bottom - (at.bottom - TOP) * value / top;
    attribute(svg, "viewBox", `0 0 ${at.width} ${at.height}`);
    const made = [];
    for (const mark of marks) {
      made.push(shape("path", { class: "grid", d: `M${LEFT} ${y(mark)}H${at.width - RIGHT}` }));
      const label = shape("text", { x: LEFT - 10, y: y(mark) + 4, "text-anchor": "end" });
      label.textContent = mark ? rate(mark) : "0";
      made.push(label);
    }
    const shown = history.filter((sample) => at.last - sample[0] <= at.span);
    if (shown.length > 1) {
      const rates = line(shown, at.x, (sample) => y(sample[1]));
      made.push(shape("path", { class: "area", d: `${rates.replace(/(?!^)M/g, "L")}L${at.x(shown[shown.length - 1][0])} ${at.bottom}L${at.x(shown[0][0])} ${at.bottom}z` }));
      made.push(shape("path", { class: "rate", d: rates }));
      made.push(shape("path", { class: "limit", d: line(shown, at.x, (sample) => sample[2] == null ? null : y(sample[2])) }));
    }
    if (at.levels) {
      const most = history.reduce((m, sample) => Math.max(m, sample[3] || 0), 3);
      const base = at.bottom + STRIP;
      const level = (value) => base - (STRIP - 14) * value / most;
      made.push(shape("path", { class: "level", d: line(shown, at.x, (sample) => sample[3] == null ? null : level(sample[3])) }));
      const label = shape("text", { x: LEFT - 10, y: base - 2, "text-anchor": "end" });
      label.textContent = `level ${history[history.length - 1][3] ?? UNKNOWN}`;
      made.push(label);
    }
    for (const part of [1, 0.5, 0]) {
      const label = shape("text", { x: at.x(at.last - at.span * part), y: at.height - 7, "text-anchor": part === 1 ? "start" : part ? "middle" : "end" });
      label.textContent = part ? ago(at.span * part) : "now";
      made.push(label);
    }
    if (cursor != null && history[cursor]) {
      const x = at.x(history[cursor][0]);
      made.push(shape("path", { class: "cursor", d: `M${x} ${TOP}V${at.height - BOTTOM}` }));
    }
    svg.replaceChildren(...made);
  }
  function sampleWords(sample) {
    const facts = [clock(sample[0]), rate(sample[1])];
    if (sample[2] != null) facts.push(`limit ${rate(sample[2])}`);
    if (sample[3] != null) facts.push(`level ${sample[3]}`);
    return facts.join(" · ");
  }
  function readOut(index) {
    const output = byId("readout");
    cursor = index == null || !history.length ? null : Math.max(0, Math.min(history.length - 1, index));
    output.hidden = cursor == null;
    if (cursor != null) {
      output.textContent = sampleWords(history[cursor]);
      const at = frame();
      const x = at.x(history[cursor][0]);
      output.style.left = `${Math.max(4, Math.min(at.width - output.offsetWidth - 4, x - output.offsetWidth / 2))}px`;
    }
    drawChart();
  }
  let worded = 0;
  function chartWords(view) {
    if (Date.now() - worded < 10000 && !view.full) return; // words that change each second cannot be read
    worded = Date.now();
    const rates = history.map((sample) => sample[1]);
    if (rates.length < 2) return;
    const span = history[history.length - 1][0] - history[0][0];
    const mean = rates.reduce((sum, one) => sum + one, 0) / rates.length;
    const facts = [`Over the last ${duration(span)}: ${rate(mean)} on average, ${rate(Math.max(...rates))} at most`];
    if (view.limit != null) facts.push(`limit ${rate(view.limit)}`);
    byId("chart-words").textContent = `${facts.join("; ")}.`;
    if (byId("chart-details").open) chartRows();
  }
  function chartRows() {
    const every = Math.max(1, Math.ceil(history.length / 15));
    const picked = history.filter((_, index) => (history.length - 1 - index) % every === 0).reverse();
    byId("chart-rows").replaceChildren(...picked.map((sample) => {
      const row = document.createElement("tr");
      const cells = [clock(sample[0]), rate(sample[1])];
      if (!byId("chart-details").classList.contains("plain")) cells.push(sample[2] == null ? "none" : rate(sample[2]), sample[3] == null ? UNKNOWN : String(sample[3]));
      for (const value of cells) row.insertCell().textContent = value;
      return row;
    }));
  }

  // ---- the parts of the page ----

  function tiles(view) {
    const facts = [["Rate", rate(view.rate), view.rate_of], ["Time left", duration(view.left), ""]];
    if (view.datastores) {
      const known = view.datastores.filter((store) => store.free != null);
      const least = known.sort((a, b) => a.free - b.free)[0];
      facts.push(["Free space", size(least && least.free), least ? `on ${least.name}` : ""]);
    } else {
      facts.push(["Limit", view.limit == null ? "none" : rate(view.limit), ""]);
      facts.push(["Compression", view.ratio == null ? UNKNOWN : ratio(view.ratio), view.compression || ""]);
    }
    const list = byId("tiles");
    while (list.children.length > facts.length) list.lastElementChild.remove();
    facts.forEach(([term, value, more], index) => {
      let tile = list.children[index];
      if (!tile) {
        tile = document.createElement("div");
        tile.append(document.createElement("dt"), document.createElement("dd"));
        tile.lastElementChild.append(document.createElement("span"), document.createElement("small"));
        list.append(tile);
      }
      const [label, what] = tile.children;
      if (label.textContent !== term) label.textContent = term;
      if (what.firstElementChild.textContent !== value) what.firstElementChild.textContent = value;
      if (what.lastElementChild.textContent !== more) what.lastElementChild.textContent = more;
    });
  }

  const narrow = window.matchMedia("(max-width: 34rem)");
  function disk(view, row, item) {
    const name = `${item.vm}/${item.disk}`;
    attribute(row, "data-tone", item.tone);
    attribute(field(row, "tone"), "data-tone", item.tone);
    const fields = {
      vm: item.vm, disk: item.disk, state: item.state, size: size(item.size),
      from: view.program === "sender" ? item.place : item.peer,
      to: view.program === "sender" ? item.peer : item.place,
      done: `${percent(item.done, item.size)} %`, rate: rate(item.rate), left: duration(item.left),
      ratio: ratio(item.ratio), note: item.note || "", advice: item.advice || "",
    };
    if (item.proof != null) fields.state += ` ${Math.floor(item.proof * 100)} %`;
    for (const [key, value] of Object.entries(fields)) text(row, key, value);
    field(row, "ratio-fact").hidden = item.ratio == null;
    field(row, "trouble").hidden = !item.note;
    const done = percent(item.done, item.size);
    const bar = field(row, "bar");
    attribute(bar, "aria-valuenow", String(done));
    attribute(bar, "aria-valuetext", `${done} %, ${item.state}`);
    attribute(bar, "aria-label", name);
    width(field(row, "fill"), item.size ? item.done * 100 / item.size : 100);
    drawMap(field(row, "map"), item.map, name, narrow.matches);
  }

  function store(row, item) {
    const known = item.size != null;
    const short = known && item.free < item.expected;
    const soon = known && item.full_in != null && item.expected > 0 && short;
    const tone = !known ? "bad" : short ? "warn" : "good";
    attribute(row, "data-tone", tone);
    attribute(field(row, "tone"), "data-tone", tone);
    text(row, "name", item.name);
    text(row, "state", !known ? "does not answer" : short ? "may be too small" : "room enough");
    text(row, "free", size(item.free));
    text(row, "size", size(item.size));
    text(row, "promised", size(item.reserved));
    text(row, "coming", size(item.expected));
    text(row, "full", item.full_in == null ? "not foreseeable" : duration(item.full_in));
    field(row, "trouble").hidden = tone === "good";
    text(row, "note", !known ? "Nothing was heard of its file system for a minute, or its path is missing."
      : short ? `Disks on their way may need ${size(item.expected)} at most, and ${size(item.free)} are free.${soon ? ` As it fills now, it is full in ${duration(item.full_in)}.` : ""}` : "");
    text(row, "advice", !known ? "Is it mounted, and does its server answer?" : short ? "Make room there. A disk that meets a full datastore stops and can be gone on with." : "");
    const share = (bytes) => known && item.size ? bytes * 100 / item.size : 0;
    const free = known ? item.free : 0;
    width(field(row, "used"), share(item.size - free));
    width(field(row, "reserved"), share(Math.min(free, item.reserved)));
    width(field(row, "expected"), share(Math.min(Math.max(0, free - item.reserved), Math.max(0, item.expected - item.reserved))));
    attribute(field(row, "bar"), "aria-label", known ? `${percent(item.size - free, item.size)} % of ${item.name} used, ${size(item.reserved)} promised` : `${item.name} does not answer`);
  }

  function problem(row, item) {
    text(row, "at", clock(item.at));
    attribute(field(row, "at"), "datetime", new Date(item.at * 1000).toISOString());
    for (const key of ["subject", "message", "advice"]) text(row, key, item[key]);
  }

  function job(row, item) {
    for (const key of ["id", "vm", "receiver", "disks", "priority"]) text(row, key, String(item[key]));
    attribute(field(row, "tone"), "data-tone", item.tone);
    const again = item.not_before == null ? "" : `, not before ${clock(item.not_before)}`;
    const tries = item.attempts > 1 ? `, try ${item.attempts}` : "";
    text(row, "state", `${item.state}${again}${tries}`);
    text(row, "note", item.note || "");
    field(row, "note").hidden = !item.note;
  }

  // ---- what changed, for those who listen ----

  let states = null, saying = [], said = 0;
  function announce(view) {
    const now = new Map(view.disks.map((item) => [item.id, [`${item.vm}/${item.disk}`, item.state, item.tone]]));
    if (states) {
      for (const [id, [name, state, tone]] of now) {
        const before = states.get(id);
        if (!before || before[1] !== state) saying.push(`${name}: ${state}`);
        else if (before[2] !== tone && tone === "warn") saying.push(`${name} does not get on`);
      }
    }
    states = now;
    if (saying.length && Date.now() - said > 5000) {
      byId("announce").textContent = saying.length > 4 ? `${plural(saying.length, "disk")} changed` : saying.join("; ");
      saying = [];
      said = Date.now();
    }
  }

  function show(view) {
    const header = document.querySelector(".top");
    text(header, "program", view.program);
    text(header, "host", view.host);
    text(header, "state", view.state);
    attribute(byId("state"), "data-tone", view.tone);
    const footer = document.querySelector("footer");
    text(footer, "version", view.version);
    text(footer, "at", clock(view.at));
    const running = view.disks.filter((item) => item.tone === "busy" || item.tone === "warn");
    const part = running.reduce((sum, item) => sum + item.done, 0);
    const whole = running.reduce((sum, item) => sum + item.size, 0);
    document.title = `${running.length ? `${percent(part, whole)} % · ` : ""}${view.state} – Flatship ${view.program}`;
    tiles(view);
    byId("chart-details").classList.toggle("plain", view.datastores != null);
    for (const head of document.querySelectorAll(".of-sender")) head.hidden = view.datastores != null;
    drawLegend(view.disks.map((item) => item.map));
    listed(byId("disks"), "disk", view.disks, (item) => item.id, (row, item) => disk(view, row, item));
    byId("no-disks").hidden = view.disks.length > 0;
    byId("more-disks").hidden = !view.more_disks;
    byId("more-disks").textContent = `And ${plural(view.more_disks, "more disk")}.`;
    byId("queue-section").hidden = !view.queue;
    if (view.queue) {
      listed(byId("queue"), "job", view.queue, (item) => item.id, job);
      byId("no-jobs").hidden = view.queue.length > 0;
      byId("queue").closest(".scroll").hidden = view.queue.length === 0;
      byId("more-jobs").hidden = !view.more_jobs;
      byId("more-jobs").textContent = `And ${plural(view.more_jobs, "more job")}.`;
    }
    byId("stores-section").hidden = !view.datastores;
    if (view.datastores) listed(byId("stores"), "store", view.datastores, (item) => item.name, store);
    listed(byId("problems"), "problem", view.problems, (item) => `${item.at} ${item.subject} ${item.message}`, problem);
    byId("no-problems").hidden = view.problems.length > 0;
    drawChart();
    chartWords(view);
  }

  // ---- the daemon's word ----

  let latest = null, heard = 0, events = null;
  function take(message) {
    const view = JSON.parse(message.data);
    heard = Date.now();
    trouble("");
    if (view.full) { history = view.history; cursor = null; byId("readout").hidden = true; }
    else {
      history.push(...view.history);
      const over = history.length - HISTORY;
      if (over > 0) { history.splice(0, over); if (cursor != null) cursor = Math.max(0, cursor - over); }
    }
    latest = view;
    announce(view);
    if (!document.hidden) show(view);
    document.body.dataset.moments = String(Number(document.body.dataset.moments || 0) + 1);
  }
  function trouble(words) {
    const at = byId("broken");
    if (at.textContent !== words) at.textContent = words;
    at.hidden = !words;
  }
  const since = () => heard ? `; what is shown is from ${clock(heard / 1000)}` : "";
  function listen() {
    events = new EventSource("events");
    events.onmessage = take;
    events.onerror = () => {
      if (events.readyState !== EventSource.CLOSED) {
        trouble(`No connection to the program, trying again${since()}. Has it ended, or is the network down?`);
        return;
      }
      trouble(`The program takes no more viewers, or asks for a new login; trying again${since()}.`);
      events.close();
      setTimeout(listen, RETRY);
    };
  }
  setInterval(() => {
    if (heard && Date.now() - heard > SILENCE && byId("broken").hidden) trouble(`No news from the program${since()}.`);
  }, 1000);

  const again = () => { if (latest && !document.hidden) show(latest); };
  document.addEventListener("visibilitychange", again);
  narrow.addEventListener("change", again);
  new ResizeObserver(drawChart).observe(byId("chart"));
  byId("chart-details").addEventListener("toggle", chartRows);
  const chart = byId("chart");
  chart.addEventListener("keydown", (event) => {
    const end = history.length - 1;
    const here = cursor == null ? end : cursor;
    const to = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: end, Escape: null }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    readOut(to);
  });
  chart.addEventListener("pointermove", (event) => {
    const at = frame();
    const time = at.last - at.span * (1 - (event.clientX - chart.getBoundingClientRect().left - LEFT) / (at.width - LEFT - RIGHT));
    let near = null;
    history.forEach((sample, index) => { if (near == null || Math.abs(sample[0] - time) < Math.abs(history[near][0] - time)) near = index; });
    readOut(near);
  });
  chart.addEventListener("pointerleave", () => readOut(null));
  chart.addEventListener("blur", () => readOut(null));
  listen();
})();
