// The list of what happens, newest first.

const LABELS = { push: "App", sms: "SMS", email: "E-mail", assist: "Staff", till: "Till" };
const MAX_LINES = 60;
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export class News {
  constructor(list) {
    this.list = list;
  }

  add(lines) {
    for (const { at_ms, kind, text } of lines) {
      const item = document.createElement("li");
      item.dataset.kind = kind;
      const time = document.createElement("time");
      time.dateTime = new Date(at_ms).toISOString();
      time.textContent = clock.format(at_ms);
      const label = document.createElement("b");
      label.textContent = LABELS[kind] ?? kind;
      const words = document.createElement("span");
      words.textContent = text;
      item.append(time, label, words);
      this.list.prepend(item);
    }
    while (this.list.childElementCount > MAX_LINES) this.list.lastElementChild.remove();
  }
}
