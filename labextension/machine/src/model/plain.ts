// Makes text that a guest may have written fit to be shown: bounded, and without characters that are not seen.

/** Controls, and what changes the direction, the lines or the spacing of text. */
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;

/**
 * Returns a text of which everything is seen.
 *
 * @param text What somebody wrote.
 * @param most How many characters are shown of it.
 */
export function plain(text: string, most = 200): string {
  // Cut first: what is not shown shall cost nothing.
  const characters = Array.from(text.slice(0, 2 * most + 2));
  const shown = characters.slice(0, most).join('').replace(UNSEEN, visible);
  return characters.length > most ? `${shown}…` : shown;
}

function visible(character: string): string {
  const code = character.codePointAt(0) ?? 0;
  if (code < 0x20) {
    return String.fromCodePoint(0x2400 + code);
  }
  return `⟨U+${code.toString(16).toUpperCase().padStart(4, '0')}⟩`;
}

/** Returns a text as a sentence, beside which another one can stand. */
export function sentence(text: string): string {
  return /[.!?…]$/.test(text) ? text : `${text}.`;
}

/** Returns the first line of a cell that says something. */
export function beginning(code: string, most = 80): string {
  const line = code.slice(0, 4000).split('\n').find(one => one.trim()) ?? '';
  return plain(line.trim(), most);
}
