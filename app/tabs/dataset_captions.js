// The rows of captions: typing, saving, keys. What is typed is a draft until the server has said that it is kept; whatever
// is drawn anew in between shows the draft.
const drafts = new Map();    // "set/picture" -> text that is not saved
const kept = new Map();      // "set/picture" -> {text, stamp} as the server keeps it
let saving = Promise.resolve();
let focusOn = null;          // which row gets the keyboard when another page comes: 'first' or 'last'
let counting = null;

const areas = () => Array.from(element.querySelectorAll('textarea'));
const list = () => element.querySelector('.caption-rows');
const keyOf = (area) => JSON.stringify([list().dataset.set, area.dataset.picture]);
const say = (area, text, mark) => {
  const state = area.closest('.caption-row').querySelector('.caption-state');
  state.textContent = text;
  state.className = 'caption-state ' + (mark || '');
};
const showTokens = (area, tokens) => {
  const shown = area.closest('.caption-row').querySelector('.caption-tokens');
  shown.textContent = tokens.text;
  shown.className = 'caption-tokens ' + tokens.mark;
};

function settle() {
  if (!list()) return;
  const stamp = Number(list().dataset.stamp);
  for (const area of areas()) {
    const key = keyOf(area), last = kept.get(key);
    if (last && last.stamp >= stamp) area.dataset.saved = last.text;
    const text = drafts.has(key) ? drafts.get(key) : area.dataset.saved;
    if (area.value !== text) area.value = text;
    say(area, drafts.has(key) ? 'not saved yet' : '');
  }
  if (focusOn && areas().length) {
    const area = areas().at(focusOn === 'first' ? 0 : -1);
    focusOn = null;
    area.focus();
  }
}

function count(area) {
  clearTimeout(counting);
  counting = setTimeout(async () => {
    const text = area.value;
    const tokens = await server.count({text, base: list().dataset.base});
    if (area.value === text && tokens) showTokens(area, tokens);
  }, 250);
}

function areaOf(key) {
  return list() ? areas().find((area) => keyOf(area) === key) : undefined;
}

function save(key) {
  if (!drafts.has(key)) return saving;
  const [name, picture] = JSON.parse(key);
  saving = saving.then(async () => {
    const text = drafts.get(key);
    if (text === undefined) return;
    let answer;
    try { answer = await server.save({name, picture, text}); }
    catch (error) { answer = {error: 'It could not be saved: is Inkwash still running? It is kept here and tried again.'}; }
    const area = areaOf(key);
    if (!answer || answer.error) {
      if (area) say(area, answer ? answer.error : 'It could not be saved.', 'wrong');
      return;
    }
    kept.set(key, {text: answer.text, stamp: answer.stamp});
    const isCurrent = drafts.get(key) === text;
    if (isCurrent) drafts.delete(key);
    if (area) {
      area.dataset.saved = answer.text;
      if (isCurrent) {
        if (document.activeElement !== area) area.value = answer.text;
        say(area, 'saved', 'right');
      }
    }
    if (answer.changed) trigger('saved', {name});
  });
  return saving;
}

function saveAll() {
  for (const key of Array.from(drafts.keys())) save(key);
  return saving;
}

async function go(area, step) {
  const all = areas(), next = all[all.indexOf(area) + step];
  if (next) {
    next.focus();   // leaving the field saves it
    next.closest('.caption-row').scrollIntoView({block: 'nearest'});
    return;
  }
  const page = Number(list().dataset.page), pages = Number(list().dataset.pages);
  if (page + step < 0 || page + step >= pages) { save(keyOf(area)); return; }
  await saveAll();
  focusOn = step > 0 ? 'first' : 'last';
  trigger('turn', {step});
}

element.addEventListener('input', (event) => {
  if (event.target.tagName !== 'TEXTAREA') return;
  const area = event.target, key = keyOf(area);
  if (area.value === area.dataset.saved) drafts.delete(key); else drafts.set(key, area.value);
  say(area, drafts.has(key) ? 'not saved yet' : '');
  count(area);
});
element.addEventListener('focusout', (event) => {
  if (event.target.tagName === 'TEXTAREA') save(keyOf(event.target));
});
element.addEventListener('keydown', (event) => {
  const area = event.target;
  if (area.tagName !== 'TEXTAREA' || event.isComposing) return;
  const plain = !event.shiftKey && !event.altKey && !event.ctrlKey && !event.metaKey;
  const isAlone = area.selectionStart === area.selectionEnd;
  let step = 0;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 's') {
    event.preventDefault();
    save(keyOf(area));
    return;
  }
  if (plain && event.key === 'PageDown') step = 1;
  else if (plain && event.key === 'PageUp') step = -1;
  else if (plain && event.key === 'ArrowDown' && isAlone && area.selectionEnd === area.value.length) step = 1;
  else if (plain && event.key === 'ArrowUp' && isAlone && area.selectionStart === 0) step = -1;
  if (step) { event.preventDefault(); go(area, step); }
});
document.addEventListener('visibilitychange', () => { if (document.hidden) saveAll(); });
window.addEventListener('beforeunload', (event) => {
  if (drafts.size) { saveAll(); event.preventDefault(); }
});
setInterval(() => {   // what could not be saved is tried again
  for (const key of Array.from(drafts.keys())) {
    if (areaOf(key) !== document.activeElement) save(key);
  }
}, 5000);
watch('value', settle);
settle();
// The events that Python listens to: 'saved', 'turn'.
