// Contrast as WCAG 2 reckons it, and those of axe's rules that concern the page; returns faults.
() => {
  const channels = (color) => color.match(/[\d.]+/g).map(Number);
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return channels(getComputedStyle(document.documentElement).backgroundColor);
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const faults = [];
  for (const element of document.querySelectorAll("body *")) {
    const style = getComputedStyle(element);
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || style.visibility === "hidden" || !element.getClientRects().length) continue;
    if (["SCRIPT", "TEMPLATE", "NOSCRIPT"].includes(element.tagName)) continue;
    const svg = element.namespaceURI.endsWith("svg");
    const found = ratio(channels(svg ? style.fill : style.color), ground(element));
    const what = `${element.tagName} ${element.textContent.trim().slice(0, 30)}`;
    if (found < 4.5) faults.push(`contrast ${found.toFixed(2)}: ${what}`);
  }
  for (const mark of document.querySelectorAll(".state .dot, .bar span, .legend path.d, .legend path.p")) {
    if (!mark.getClientRects().length || mark.getBoundingClientRect().width < 1) continue;
    const style = getComputedStyle(mark);
    const color = mark.namespaceURI.endsWith("svg") ? style.fill : style.backgroundColor;
    const painted = channels(color).length < 4 || channels(color)[3] > 0 ? color : style.borderTopColor;
    const found = ratio(channels(painted), ground(mark.parentElement));
    if (found < 3 && !mark.closest(".room")) faults.push(`mark ${found.toFixed(2)}: ${mark.className.baseVal || mark.className}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  if (new Set(ids).size !== ids.length) faults.push("an id occurs twice");
  for (const element of document.querySelectorAll("[aria-labelledby], [aria-describedby]"))
    for (const id of `${element.getAttribute("aria-labelledby") || ""} ${element.getAttribute("aria-describedby") || ""}`.trim().split(/ +/))
      if (!document.getElementById(id)) faults.push(`no ${id} to be named by`);
  for (const element of document.querySelectorAll("[role=img], [role=progressbar], [role=group], a, summary"))
    if (!(element.getAttribute("aria-label") || element.getAttribute("aria-labelledby") || element.textContent.trim())) faults.push(`${element.tagName} has no name`);
  if (document.querySelectorAll("h1").length !== 1 || !document.documentElement.lang) faults.push("no title or language");
  let level = 1;
  for (const heading of document.querySelectorAll("h1, h2, h3")) {
    const own = Number(heading.tagName[1]);
    if (own > level + 1) faults.push(`h${own} after h${level}`);
    level = own;
  }
  for (const cell of document.querySelectorAll("th")) if (!cell.scope) faults.push("a th without scope");
  for (const element of document.querySelectorAll("main li")) if (!["UL", "OL"].includes(element.parentElement.tagName)) faults.push("li outside a list");
  return faults;
}
