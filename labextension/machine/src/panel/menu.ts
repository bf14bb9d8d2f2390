// What can be done with a row of the tree, as a menu; the snapshot is the one that the row is of.

import type { CommandRegistry } from '@lumino/commands';
import { Menu } from '@lumino/widgets';

import { COMPARE, GO_BACK, LABEL, REMOVE } from '../commands.ts';
import type { Row } from '../model/lanes.ts';

/** Opens the menu of a row; where it closes, its place has the focus again. */
export function openMenu(commands: CommandRegistry, row: Row, place: HTMLElement, x: number, y: number): void {
  const menu = new Menu({ commands });
  const args = { snapshot: row.id };
  if (row.snapshot) {
    [GO_BACK, COMPARE, LABEL, REMOVE].forEach(command => menu.addItem({ command, args }));
  } else {
    ['agentvm:snapshot-with-label', 'agentvm:fork'].forEach(command => menu.addItem({ command }));
  }
  menu.aboutToClose.connect(() => {
    place.focus({ preventScroll: true });
    // The command that was chosen is carried out after the menu was closed.
    requestAnimationFrame(() => menu.dispose());
  });
  menu.open(x, y);
}
