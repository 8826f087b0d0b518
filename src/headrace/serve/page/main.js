// Puts the page together.

import { servedModel } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { Drawer } from "./drawer.js";
import { Follow } from "./follow.js";
import { Settings } from "./settings.js";
import { keepsAll, read, readChat, write } from "./storage.js";
import { Thread } from "./thread.js";

const OPEN_CHAT = "headrace.open";
const $ = (selector) => document.querySelector(selector);

const settings = new Settings($("#settings"));
const follow = new Follow($("main"), $("#column"), $("#jump"));
const thread = new Thread($("#messages"), { edit, again, openSettings: () => settings.open() });
const composer = new Composer($("#composer"), { send, stop: () => chat.stop(), leave: () => setEditing(false) });
const drawer = new Drawer($("#chats"), { open: (id) => id !== chat.id && show(readChat(id)), gone: forgotten });

let model = null;
let editing = false;
let chat = null;

function show(kept) {
  chat?.stop();
  const mine = new Chat(kept, { model: () => model?.id, settings }, {
    // An earlier chat may still hear that it was stopped.
    change: () => mine === chat && draw(),
    grow: (message) => mine === chat && thread.grow(message),
    refused: (error) => error.status === 401 && askForKey(),
  });
  chat = mine;
  setEditing(false);
  draw();
  follow.toEnd();
  composer.area.focus();
}

function forgotten(id) {
  if (id !== chat.id) return;
  chat.discard();
  show(null);
}

function draw() {
  thread.show(chat.messages, chat.busy);
  composer.busy = chat.busy;
  $("#greeting").hidden = chat.messages.length > 0;
  $("#storage").hidden = keepsAll;
  $("#status").textContent = said();
  write("session", OPEN_CHAT, chat.messages.length ? chat.id : null);
}

function said() {
  const last = chat.messages.at(-1);
  if (chat.busy) return "The model is answering.";
  return last?.role === "assistant" && !last.error ? "The answer is complete." : "";
}

function send(text) {
  if (!settings.valid) return;
  const instead = editing;
  composer.text = "";
  setEditing(false);
  void (instead ? chat.askInstead(text) : chat.ask(text));
  follow.toEnd();
}

function again() {
  if (chat.busy || !settings.valid) return;
  setEditing(false);
  void chat.again();
  follow.toEnd();
}

function edit() {
  composer.text = chat.lastQuestion.content;
  setEditing(true);
  composer.area.focus();
}

function setEditing(on) {
  if (editing && !on) composer.text = "";
  editing = on;
  composer.isEditing = on;
}

async function findModel() {
  try {
    model = await servedModel(settings.key);
    $("#model").textContent = model.id;
    document.title = `${model.id} · headrace`;
    $("#context").textContent = `${model.id} reads and writes up to ${model.max_model_len.toLocaleString("en")} tokens.`;
    $("#unreachable").hidden = true;
  } catch (error) {
    if (error.status === 401) return askForKey();
    $("#unreachable").hidden = false;
    $("#unreachable span").textContent = `The model is not known: ${error.message}`;
  }
}

function askForKey() {
  const dialog = $("#key");
  if (dialog.open) return;
  $("#refused").hidden = !settings.key;
  dialog.querySelector("input").value = "";
  dialog.showModal();
}

$("#key form").addEventListener("submit", () => {
  settings.key = $("#key input").value;
  void findModel();
});
$("#new").addEventListener("click", () => show(null));
$("#open-chats").addEventListener("click", () => drawer.open(chat.id));
$("#open-settings").addEventListener("click", () => settings.open());
$("#reconnect").addEventListener("click", () => void findModel());
for (const example of document.querySelectorAll("#greeting button")) {
  example.addEventListener("click", () => send(example.textContent));
}
for (const dialog of document.querySelectorAll("dialog")) {
  // A click beside the box is one on the dialog itself.
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  for (const close of dialog.querySelectorAll("[data-close]")) close.addEventListener("click", () => dialog.close());
}
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (chat.busy) chat.stop();
  else if (editing) setEditing(false);
});
addEventListener("pagehide", () => chat.leave());

const open = read("session", OPEN_CHAT);
show(open ? readChat(open) : null);
void findModel();
