// The reasons of findings, which the checks and `evaluate` write in English, in the language of the page.

const texts = JSON.parse(document.querySelector("#texts").textContent);
const PATTERNS = [
  [/^(?<COUNT>\d+) frames$/, "reason-frames"],
  [/^(?<COUNT>\d+) pages$/, "reason-pages"],
  [/^orientation (?<VALUE>\d)$/, "reason-orientation"],
  [/^is (?<FORMAT>\S+)$/, "reason-format"],
  [/^changed or deleted since the studio started$/, "reason-gone"],
  [/^truncated$/, "reason-truncated"],
  [/^cannot be decoded: (?<VALUE>.+)$/s, "reason-undecoded"],
  [/^alpha$/, "reason-alpha"],
  [/^four channels$/, "reason-four-channels"],
  [/^looks like (?<LABEL>.+) \((?<VALUE>[\d.]+)\) to a classifier trained without this image$/s, "reason-label"],
  [/^probably has (?<HAS>.+) and probably lacks (?<LACKS>.+), according to a classifier trained without this image$/s, "reason-both"],
  [/^probably has (?<HAS>.+), according to a classifier trained without this image$/s, "reason-has"],
  [/^probably lacks (?<LACKS>.+), according to a classifier trained without this image$/s, "reason-lacks"],
];

/** A reason in the language of the page; paths, sizes and numbers are the same in each. */
export function translateReason(reason) {
  for (const [pattern, key] of PATTERNS) {
    const match = pattern.exec(reason);
    if (match) return texts[key].replaceAll(/[A-Z]{3,}/g, (name) => match.groups?.[name] ?? name);
  }
  return reason;
}
