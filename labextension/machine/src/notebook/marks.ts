// What is drawn into a cell. The cell's outputs, as the notebook has them, are not touched.

import type { Cell, CodeCell } from '@jupyterlab/cells';
import type { TranslationBundle } from '@jupyterlab/translation';

import type { State } from './standing.ts';

export interface Drawn {
  state: State;
  /** There is a mark that leads back to before or after the cell. */
  mark: boolean;
  /** What forks showed can be seen side by side. */
  forks: boolean;
  /** Id of the snapshot that leads nearest to where outputs were made that are not of the present; empty for none. */
  branch: string;
  /** What that is called. */
  branchName: string;
}

/** What can be done from within a cell. */
export interface Words {
  readonly trans: TranslationBundle;
  /** Opens the menu of a mark. */
  openMenu(cell: Cell, at: DOMRect): void;
  showForks(cell: Cell): void;
  goTo(cell: Cell, snapshot: string): void;
}

const MARK = 'avm-mark';
const BAR = 'avm-cellbar';

/** Draws into a cell what is wanted, in place of what was there. */
export function draw(cell: Cell, wanted: Drawn, words: Words): void {
  cell.toggleClass('avm-mod-left', wanted.state === 'left');
  cell.toggleClass('avm-mod-earlier', wanted.state === 'earlier');
  cell.node.querySelectorAll(`:scope > .${BAR}, .${MARK}`).forEach(node => node.remove());
  const outputs = cell.isPlaceholder() ? null : (cell as CodeCell).outputArea.node;
  if (!outputs) {
    return;
  }
  const why = reason(wanted, words.trans);
  describe(outputs, why);
  if (wanted.mark && cell.inputArea) {
    cell.inputArea.node.append(mark(cell, words));
  }
  if (why || wanted.forks) {
    cell.node.insertBefore(bar(cell, wanted, why, words), outputs.closest('.jp-Cell-outputWrapper'));
  }
}

/** Whether the line above a cell's outputs has got below them: JupyterLab attaches them late, and counts nodes. */
export function isMisplaced(cell: Cell): boolean {
  return cell.node.querySelector(`:scope > .jp-Cell-outputWrapper ~ .${BAR}`) !== null;
}

/** Returns why an output is not of the present; empty if it is. */
function reason({ state, branchName }: Drawn, trans: TranslationBundle): string {
  switch (state) {
    case 'left':
      return branchName
        ? trans.__('Of a branch that was left, at %1: the machine does not know what this cell did.', branchName)
        : trans.__('Of a branch that was left: the machine does not know what this cell did.');
    case 'earlier':
      return trans.__('Of an earlier machine: the present one does not know what this cell did.');
    default:
      return '';
  }
}

function describe(outputs: HTMLElement, why: string): void {
  for (const name of ['title', 'aria-description']) {
    if (why) {
      outputs.setAttribute(name, why);
    } else {
      outputs.removeAttribute(name);
    }
  }
}

function mark(cell: Cell, words: Words): HTMLElement {
  const node = button('↶', () => words.openMenu(cell, node.getBoundingClientRect()));
  node.classList.add(MARK);
  node.title = words.trans.__('Go back to before or after this cell');
  node.setAttribute('aria-label', node.title);
  node.setAttribute('aria-haspopup', 'menu');
  return node;
}

function bar(cell: Cell, wanted: Drawn, why: string, words: Words): HTMLElement {
  const node = document.createElement('div');
  node.className = BAR;
  if (why) {
    const note = document.createElement('span');
    note.setAttribute('role', 'note');
    note.textContent = why;
    node.append(note);
  }
  if (wanted.branch) {
    node.append(button(words.trans.__('Go there …'), () => words.goTo(cell, wanted.branch)));
  }
  if (wanted.forks) {
    node.append(button(words.trans.__('Show side by side'), () => words.showForks(cell)));
  }
  return node;
}

function button(text: string, act: () => void): HTMLButtonElement {
  const node = document.createElement('button');
  node.type = 'button';
  node.className = 'avm-small';
  node.textContent = text;
  node.addEventListener('click', act);
  // Enter and space are the button's, not the notebook's.
  node.dataset.lmSuppressShortcuts = 'true';
  // A press on a prompt begins to drag the cell.
  node.addEventListener('mousedown', event => event.stopPropagation());
  return node;
}
