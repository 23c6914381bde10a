"use strict";
// Sorts tables, filters answers, shows candidates. Texts of models and people only ever become text nodes.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const share = (value) => (value < 0.001 ? "< 0.1" : (100 * value).toFixed(value < 0.0995 ? 1 : 0)) + " %";

  // ---- Light and dark ----
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; theme.setAttribute("aria-label", "Show the page " + (isDark() ? "light" : "dark")); };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
  prefersDark.addEventListener("change", nameTheme);
  theme.hidden = false;
  nameTheme();

  // ---- Sorting ----
  const keyOf = (row, place) => {
    const cell = row.cells[place];
    return "sort" in cell.dataset ? Number(cell.dataset.sort) : cell.textContent.trim();
  };
  const isMissing = (key) => key === "-" || key === "";
  const compare = (one, other) => {
    if (isMissing(one) || isMissing(other)) return isMissing(one) - isMissing(other);
    if (typeof one === "number" && typeof other === "number") return one - other;
    return String(one).localeCompare(String(other), undefined, { numeric: true });
  };
  const sort = (table, header, place) => {
    const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    all("th[aria-sort]", table).forEach((other) => other.setAttribute("aria-sort", "none"));
    header.setAttribute("aria-sort", direction);
    const rows = all("tbody tr", table).map((row) => [keyOf(row, place), row]);
    const sign = direction === "ascending" ? 1 : -1;
    rows.sort(([one], [other]) => (isMissing(one) || isMissing(other) ? compare(one, other) : sign * compare(one, other)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  all("table[data-sortable]").forEach((table) => {
    const headers = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    headers.forEach((header, place) => {
      const button = make("button", "", header.textContent);
      button.type = "button";
      header.replaceChildren(button);
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sort(table, header, place));
    });
  });

  // ---- Answers ----
  const filters = document.getElementById("reply-filters");
  if (filters) {
    const replies = all(".reply").map((element) => [element, element.textContent.toLocaleLowerCase()]);
    const [person, split, text] = ["person", "split", "text"].map((name) => document.getElementById("reply-" + name));
    const filter = () => {
      const wanted = text.value.trim().toLocaleLowerCase();
      let shown = 0;
      replies.forEach(([element, content]) => {
        const fits = (!person.value || element.dataset.person === person.value)
          && (!split.value || element.dataset.split === split.value) && content.includes(wanted);
        element.hidden = !fits;
        shown += fits;
      });
      document.getElementById("reply-count").textContent = shown + " of " + replies.length;
      document.getElementById("reply-none").hidden = shown > 0;
    };
    [person, split].forEach((control) => control.addEventListener("change", filter));
    text.addEventListener("input", filter);
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.hidden = false;
    filter();
  }

  // ---- Key tokens ----
  const source = document.getElementById("token-data");
  if (source) {
    const data = JSON.parse(source.textContent);
    const inspector = document.getElementById("inspector");
    const status = document.getElementById("inspector-status");
    const after = document.getElementById("token-after");
    const chooser = document.getElementById("token-person");
    const answers = all(".token-answer");
    let chosen = null;

    const visible = (text) => (typeof text !== "string" ? "(withheld)" : text.trim() === "" ? JSON.stringify(text) : text);
    const column = (title, candidates, answer, probability) => {
      const box = make("div");
      box.append(make("h3", "", title));
      if (!candidates) {
        box.append(make("p", "empty", "not asked"));
        return box;
      }
      const list = make("ol", "candidates");
      const isAnswer = ([text, value]) => text === answer && Math.abs(value - probability) < 0.02;
      const items = candidates.some(isAnswer) || probability === undefined ? candidates : [...candidates, [answer, probability]];
      items.forEach(([text, value]) => {
        const item = make("li", isAnswer([text, value]) ? "is-answer" : "");
        const line = make("div", "text");
        line.append(make("span", "", visible(text)), make("span", "", share(value)));
        const bar = make("div", "bar");
        const fill = make("span");
        fill.style.width = 100 * value + "%";
        bar.append(fill);
        item.append(line, bar);
        list.append(item);
      });
      box.append(list);
      return box;
    };
    const spoken = (title, candidates) => (candidates && candidates.length
      ? title + ": " + candidates.slice(0, 3).map(([text, value]) => visible(text).trim() + " " + share(value)).join(", ") + ". " : "");
    const show = (button) => {
      if (chosen) chosen.classList.remove("is-chosen");
      chosen = button;
      button.classList.add("is-chosen");
      const example = data[Number(button.closest(".token-answer").dataset.example)];
      const word = example.words[Number(button.dataset.word)];
      const tokens = example.tokens.slice(word.first, word.last + 1);
      const token = tokens.reduce((most, one) => (one.entropy > most.entropy ? one : most));
      const name = after ? after.value : "";
      const sides = [
        ["Teacher", token.teacher, token.answer_prob.teacher],
        ["Before: vanilla", token.models.vanilla, token.answer_prob.vanilla],
      ];
      if (name) sides.push(["After: " + name, token.models[name], token.answer_prob[name]]);
      const kinds = [word.is_key ? "key word" : "", word.is_private ? "private word" : ""].filter(Boolean);
      const told = ["entropy " + word.entropy.toFixed(2) + " nats", ...kinds];
      if (tokens.length > 1) told.push("shown is its most uncertain token of " + tokens.length + ": " + visible(token.text));
      const columns = make("div", "columns");
      sides.forEach(([title, candidates, probability]) => columns.append(column(title, candidates, token.text, probability)));
      inspector.replaceChildren(make("p", "word-head", word.text), make("p", "word-facts", told.join(" · ")), columns);
      status.textContent = word.text + ", " + told.join(", ") + ". " + sides.map(([title, candidates]) => spoken(title, candidates)).join("");
    };
    const buttons = (answer) => all(".word", answer);
    const move = (from, to) => {
      if (!to) return;
      buttons(to.closest(".token-answer")).forEach((one) => { one.tabIndex = one === to ? 0 : -1; });
      to.focus();
    };
    const next = (button, key) => {
      const own = buttons(button.closest(".token-answer"));
      const place = own.indexOf(button);
      const seen = answers.filter((answer) => !answer.hidden);
      const line = seen.indexOf(button.closest(".token-answer"));
      const other = (step) => { const answer = seen[line + step]; return answer && buttons(answer)[Math.min(place, buttons(answer).length - 1)]; };
      const moves = { ArrowRight: () => own[place + 1], ArrowLeft: () => own[place - 1], Home: () => own[0],
        End: () => own[own.length - 1], ArrowDown: () => other(1), ArrowUp: () => other(-1) };
      return moves[key] && [moves[key]()];
    };
    answers.forEach((answer) => buttons(answer).forEach((button) => {
      button.addEventListener("mouseenter", () => show(button));
      button.addEventListener("focus", () => show(button));
      button.addEventListener("click", () => show(button));
      button.addEventListener("keydown", (event) => {
        const found = next(button, event.key);
        if (found) { event.preventDefault(); move(button, found[0]); }
      });
    }));
    if (after) after.addEventListener("change", () => { if (chosen) show(chosen); });
    chooser.addEventListener("change", () => answers.forEach((answer) => {
      answer.hidden = Boolean(chooser.value) && answer.dataset.person !== chooser.value;
    }));
    document.getElementById("token-filters").hidden = false;
    const first = document.querySelector(".token-answer .word.is-key") || document.querySelector(".token-answer .word");
    if (first) { show(first); status.textContent = ""; }
  }

  // ---- Links into closed parts, and printing ----
  const open = (hash) => {
    const target = hash && document.getElementById(decodeURIComponent(hash.slice(1)));
    for (let part = target; part; part = part.parentElement) if (part instanceof HTMLDetailsElement) part.open = true;
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (link) open(link.hash);
  });
  window.addEventListener("hashchange", () => open(location.hash));
  open(location.hash);
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = all("details:not([open]):not(.data)");
    closed.forEach((part) => { part.open = true; });
  });
  window.addEventListener("afterprint", () => closed.forEach((part) => { part.open = false; }));
})();
