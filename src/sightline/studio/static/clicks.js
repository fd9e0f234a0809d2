// The corrections of this tab, which U takes back, the last first: they outlive a reload and are those of all its pages.

import { canRetry, undo } from "./api.js";

const KEY = `clicks ${document.querySelector('meta[name="csrf-token"]').content}`; // of this start of the studio
const clicks = JSON.parse(sessionStorage.getItem(KEY) ?? "[]"); // their numbers

function save() {
  sessionStorage.setItem(KEY, JSON.stringify(clicks));
}

export function remember(click) {
  clicks.push(click);
  save();
}

/** Whether there is something to take back; `earlier` says whether the file has lines of before the studio started. */
export const canTakeBack = (earlier) => clicks.length > 0 || Boolean(earlier);

/**
 * Take back the last click, or without one the last line of before the studio started, and return the response, and in
 * `isEarlier` which it was. A click that the server did not take back is still the last; without any, null.
 */
export async function takeBack(earlier) {
  const click = clicks.at(-1) ?? null;
  if (click === null && !earlier) return null;
  try {
    const response = await undo(click);
    if (click !== null) clicks.pop();
    return { response, isEarlier: click === null };
  } catch (error) {
    if (!canRetry(error) && click !== null) clicks.pop();
    throw error;
  } finally {
    save();
  }
}
