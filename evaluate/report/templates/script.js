"use strict";
// Sorts tables, filters and folds answers, shows candidates. Texts of models and people only ever become text nodes.
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

  // ---- Answers: a few at first, the rest on demand; long replies are folded ----
  const FEW = 10;
  const MORE = 20;
  const filters = document.getElementById("reply-filters");
  if (filters) {
    const list = document.getElementById("reply-list");
    const replies = all(".reply", list).map((element) => [element, element.textContent.toLocaleLowerCase()]);
    const [person, split, text] = ["person", "split", "text"].map((name) => document.getElementById("reply-" + name));
    const [more, next, rest] = ["more", "next", "all"].map((name) => document.getElementById("reply-" + name));
    let most = FEW;
    let fitting = [];

    const nameFold = (button, said) => {
      const isOpen = said.classList.contains("is-open");
      button.textContent = isOpen ? "less" : "more";
      button.setAttribute("aria-expanded", String(isOpen));
      button.setAttribute("aria-label", button.textContent + " of what is said: " + said.dataset.of);
    };
    const offer = (said, fits) => {
      said.classList.toggle("fits", fits);
      let button = said.nextElementSibling;
      if (!button && !fits) {
        button = make("button", "unfold");
        button.type = "button";
        button.addEventListener("click", () => { said.classList.toggle("is-open"); nameFold(button, said); });
        nameFold(button, said);
        said.after(button);
      }
      if (button) button.hidden = fits;
    };
    const fold = () => { // A fourth line is shown: the control would take as much. All is read before any is written.
      const shut = all(".reply:not([hidden]) .said:not(.is-open)", list);
      shut.forEach((said) => said.classList.remove("fits"));
      const fits = shut.map((said) => said.scrollHeight <= (4 / 3) * said.clientHeight + 2);
      shut.forEach((said, place) => offer(said, fits[place]));
    };

    const show = () => {
      const shown = fitting.slice(0, most);
      const seen = new Set(shown);
      replies.forEach(([element]) => { element.hidden = !seen.has(element); });
      const left = fitting.length - shown.length;
      const isFiltered = Boolean(person.value || split.value || text.value.trim());
      const count = shown.length + " of " + fitting.length;
      document.getElementById("reply-count").textContent = count + (isFiltered ? " (" + replies.length + " without filters)" : "");
      document.getElementById("reply-count-below").textContent = count;
      document.getElementById("reply-none").hidden = fitting.length > 0;
      const filtered = [person.value && "person " + person.value, split.value && "split " + split.value,
        text.value.trim() && "text “" + text.value.trim() + "”"].filter(Boolean);
      document.getElementById("reply-printed").textContent = shown.length + " of the " + replies.length
        + " questions on this page are printed" + (filtered.length ? "; " + fitting.length + " fit the filters (" + filtered.join(", ") + ")" : "")
        + ". A reply that ends in … goes on.";
      more.hidden = left === 0;
      next.textContent = "Show " + Math.min(left, MORE) + " more";
      rest.textContent = "Show all " + fitting.length;
      rest.hidden = left <= MORE;
      fold();
    };
    const filter = () => {
      const wanted = text.value.trim().toLocaleLowerCase();
      fitting = replies.filter(([element, content]) => (!person.value || element.dataset.person === person.value)
        && (!split.value || element.dataset.split === split.value) && content.includes(wanted)).map(([element]) => element);
      most = FEW;
      show();
    };
    const extend = (number) => { // Reading goes on at the first new question, and the button may be gone.
      const question = fitting[most].querySelector(".question");
      most = number;
      show();
      question.tabIndex = -1;
      question.focus({ preventScroll: true });
    };
    next.addEventListener("click", () => extend(most + MORE));
    rest.addEventListener("click", () => extend(fitting.length));
    [person, split].forEach((control) => control.addEventListener("change", filter));
    text.addEventListener("input", filter);
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.hidden = false;
    list.classList.add("folds");
    filter();
    let width = list.clientWidth;
    new ResizeObserver(() => {
      if (list.clientWidth !== width) { width = list.clientWidth; fold(); }
    }).observe(list);
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
    const uncover = (button) => { // Where the panel is docked below, it must not lie on the word that it is about.
      const [word, panel] = [button, inspector.parentElement].map((element) => element.getBoundingClientRect());
      const isCovered = word.bottom > panel.top && word.top < panel.bottom && word.right > panel.left && word.left < panel.right;
      if (isCovered) window.scrollBy({ top: word.bottom - panel.top + 8 });
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
      button.addEventListener("focus", () => { show(button); uncover(button); });
      button.addEventListener("click", () => { show(button); uncover(button); });
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
