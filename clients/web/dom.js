// Small helpers for building elements. Text is always set as text, never as markup.

export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

export function button(label, onClick, className = "") {
  const made = element("button", className, label);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}

/** What a failed call means to the person holding the device. */
export function explain(error) {
  const known = { expired: "This offer is over.", offer_expired: "This offer is over.", offer_recalled: "This offer was taken back.", timeout: "No connection. Please try again." };
  return known[error?.message] ?? `That did not work: ${error?.message ?? "unknown"}`;
}
