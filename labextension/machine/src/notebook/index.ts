// The machine in the notebook itself.

import { ILabShell, type JupyterFrontEnd, type JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import type { Cell } from '@jupyterlab/cells';
import { INotebookTracker, type NotebookPanel } from '@jupyterlab/notebook';

import { IMachines } from '../tokens.ts';
import { Commands } from './commands.ts';
import { forksOf } from './forks.ts';
import { View } from './view.ts';

export const notebook: JupyterFrontEndPlugin<void> = {
  id: 'agentvm-kernel:notebook',
  description: 'Takes snapshots from a notebook, marks the ways back, and tells which outputs are not of the present.',
  autoStart: true,
  requires: [IMachines],
  // Notebook's pages without a notebook have no tracker.
  optional: [INotebookTracker, ICommandPalette, ILabShell],
  activate: (
    app: JupyterFrontEnd,
    shared: IMachines,
    tracker: INotebookTracker | null,
    palette: ICommandPalette | null,
    labShell: ILabShell | null
  ): void => {
    if (!tracker) {
      return;
    }
    const views = new Set<View>();
    const viewOf = (cell: Cell): View | null =>
      [...views].find(view => view.notebook.content.widgets.includes(cell)) ?? null;
    const commands = new Commands(app, shared, tracker, labShell, viewOf);
    const words = {
      trans: shared.trans,
      openMenu: (cell: Cell, at: DOMRect): void => commands.openMenu(cell, at),
      showForks: (cell: Cell): void => commands.showForks(cell),
      goTo: (cell: Cell, snapshot: string): void => void commands.goTo(cell, snapshot)
    };
    const follow = (panel: NotebookPanel): void => {
      const view = new View(panel, shared.machines, words);
      views.add(view);
      panel.disposed.connect(() => views.delete(view));
    };
    commands.add(palette);
    tracker.forEach(follow);
    tracker.widgetAdded.connect((_, panel) => follow(panel));
    shared.machines.api.forked.connect((_, { kernel, outputs }) => {
      const forks = forksOf(outputs);
      if (forks) {
        commands.showColumns(forks, kernel, true);
      }
    });
  }
};
