// What the browser keeps: chats and settings for good, the key and the chat that is open for this tab.

const CHAT = "headrace.chat.";
const MAX_CHATS = 50;

/** Whether everything could be kept so far. Storage may be full, or turned off. */
export let keepsAll = true;

function attempt(act, otherwise = null) {
  try {
    return act();
  } catch {
    keepsAll = false;
    return otherwise;
  }
}

/** A value by name. `area`: "local" or "session". Returns null for one that is missing or damaged. */
export function read(area, name) {
  const text = attempt(() => window[`${area}Storage`].getItem(name));
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Keeps a value; null forgets it. Returns whether that was possible. */
export function write(area, name, value) {
  return attempt(() => {
    const storage = window[`${area}Storage`];
    if (value === null) storage.removeItem(name);
    else storage.setItem(name, JSON.stringify(value));
    return true;
  }, false);
}

/** All chats that are kept: {id, changed, messages}, the latest first. */
export function chats() {
  const names = attempt(() => Object.keys(window.localStorage), []);
  const found = names.filter((name) => name.startsWith(CHAT)).map((name) => read("local", name));
  return found.filter((chat) => chat && Array.isArray(chat.messages)).sort((a, b) => b.changed - a.changed);
}

/** Keeps a chat, and room for it: the oldest go when there are too many, or no space is left. */
export function keepChat(chat) {
  const others = chats().filter((other) => other.id !== chat.id);
  for (const old of others.splice(MAX_CHATS - 1)) forgetChat(old.id);
  while (!write("local", CHAT + chat.id, chat)) {
    const oldest = others.pop();
    if (!oldest) return;
    forgetChat(oldest.id);
    keepsAll = true;
  }
}

export function readChat(id) {
  return read("local", CHAT + id);
}

export function forgetChat(id) {
  write("local", CHAT + id, null);
}
