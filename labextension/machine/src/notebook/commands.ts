// What can be done with the machine from within a notebook.

import type { ILabShell, JupyterFrontEnd } from '@jupyterlab/application';
import { type ICommandPalette, MainAreaWidget } from '@jupyterlab/apputils';
import type { Cell } from '@jupyterlab/cells';
import type { INotebookTracker } from '@jupyterlab/notebook';
import { Menu } from '@lumino/widgets';

import { icon } from '../icon.ts';
import type { Snapshot } from '../model/wire.ts';
import type { IMachines } from '../tokens.ts';
import { Columns } from './columns.ts';
import type { Forks } from './forks.ts';
import { camera } from './icon.ts';
import type { View } from './view.ts';

export const SNAPSHOT = 'agentvm:snapshot';
export const BEFORE = 'agentvm:back-before-cell';
export const AFTER = 'agentvm:back-after-cell';
export const SHOW_FORKS = 'agentvm:show-forks';

const CATEGORY = 'AgentVM';
const NONE = { type: 'object', properties: {} };
/** Milliseconds for which the button says what came of it. */
const SHOWN = 2500;

export class Commands {
  private readonly app: JupyterFrontEnd;
  private readonly shared: IMachines;
  private readonly tracker: INotebookTracker;
  private readonly labShell: ILabShell | null;
  private readonly viewOf: (cell: Cell) => View | null;
  private readonly menu: Menu;
  /** What the button shows: that it is at it, and what came of it. */
  private condition: '' | 'busy' | 'done' | 'failed' = '';
  private count = 0;
  /** Where forks are shown, by kernel. */
  private readonly columns = new Map<string, Side[]>();

  constructor(
    app: JupyterFrontEnd,
    shared: IMachines,
    tracker: INotebookTracker,
    labShell: ILabShell | null,
    viewOf: (cell: Cell) => View | null
  ) {
    this.app = app;
    this.shared = shared;
    this.tracker = tracker;
    this.labShell = labShell;
    this.viewOf = viewOf;
    this.menu = new Menu({ commands: app.commands });
    this.menu.addItem({ command: BEFORE });
    this.menu.addItem({ command: AFTER });
  }

  /** Adds all commands. */
  add(palette: ICommandPalette | null): void {
    const { trans } = this.shared;
    this.app.commands.addCommand(SNAPSHOT, {
      label: trans.__('Take a Snapshot'),
      caption: () => this.caption(),
      icon: camera,
      className: () => (this.condition ? `avm-snapshot avm-mod-${this.condition}` : 'avm-snapshot'),
      isVisible: () => isOurs(this.shared),
      isEnabled: () => this.shared.store?.phase === 'running' && !this.shared.store.doing,
      execute: () => this.snapshot(),
      describedBy: { args: NONE }
    });
    this.addWay(BEFORE, trans.__('Go Back to Before This Cell …'), 'before');
    this.addWay(AFTER, trans.__('Go Back to After This Cell …'), 'after');
    this.app.commands.addCommand(SHOW_FORKS, {
      label: trans.__('Show Forks Side by Side'),
      isEnabled: () => this.forksOfActive() !== null,
      execute: () => {
        const cell = this.tracker.activeCell;
        if (cell) {
          this.showForks(cell);
        }
      },
      describedBy: { args: NONE }
    });
    for (const command of [SNAPSHOT, BEFORE, AFTER, SHOW_FORKS]) {
      palette?.addItem({ command, category: CATEGORY });
    }
    this.tracker.activeCellChanged.connect(() => this.notify(BEFORE, AFTER, SHOW_FORKS));
    let before = '';
    this.shared.changed.connect(() => {
      const { store } = this.shared;
      const now = `${store?.kernel} ${store?.phase} ${store?.doing} ${store?.tree?.current}`;
      if (now !== before) {
        before = now;
        this.notify(SNAPSHOT, BEFORE, AFTER, SHOW_FORKS);
      }
    });
  }

  /** Opens the menu of a cell's mark. */
  openMenu(cell: Cell, at: DOMRect): void {
    this.activate(cell);
    this.menu.open(at.left, at.bottom);
  }

  /** Goes back to a snapshot, once the user knows what is lost. */
  async goTo(cell: Cell, snapshot: string): Promise<void> {
    const store = this.viewOf(cell)?.store;
    if (store) {
      await this.shared.actions.rollback(store, snapshot);
    }
  }

  /** Shows what the forks of a cell showed. */
  showForks(cell: Cell): void {
    const view = this.viewOf(cell);
    const forks = view?.forks(cell);
    if (view?.store && forks) {
      this.showColumns(forks, view.store.kernel, view.owns(cell, forks));
    }
  }

  /**
   * Shows what forks showed, in the main area beside the notebook.
   *
   * @param isOfNow These forks may be adopted; the host sees to it that no other is.
   */
  showColumns(forks: Forks, kernel: string, isOfNow: boolean): void {
    const notebook = this.tracker.find(one => one.sessionContext.session?.kernel?.id === kernel);
    if (!notebook) {
      return;
    }
    const earlier = this.columns.get(kernel) ?? [];
    const known = earlier.find(one => one.run === forks.run);
    if (known) {
      this.app.shell.activateById(known.id);
      return;
    }
    const { trans } = this.shared;
    const adopt = (fork: number): Promise<boolean> => this.adopt(kernel, fork, forks.run);
    const content = new Columns(forks, notebook.content.rendermime, isOfNow ? adopt : null, trans);
    const widget = new Side(forks.run, content);
    widget.title.label = trans.__('Forks of run %1', forks.run);
    widget.title.icon = icon;
    widget.title.closable = true;
    const last = earlier.at(-1);
    const place = last ? ({ mode: 'tab-after', ref: last.id } as const) : ({ mode: 'split-bottom', ref: notebook.id } as const);
    this.app.shell.add(widget, this.labShell ? 'main' : 'down', place);
    this.columns.set(kernel, [...earlier, widget]);
    widget.disposed.connect(() => this.forget(kernel, widget));
    notebook.disposed.connect(() => widget.dispose());
  }

  private forget(kernel: string, closed: Side): void {
    const left = this.columns.get(kernel)?.filter(one => one !== closed) ?? [];
    if (left.length) {
      this.columns.set(kernel, left);
    } else {
      this.columns.delete(kernel);
    }
  }

  private async adopt(kernel: string, fork: number, run: number): Promise<boolean> {
    const { machines, actions } = this.shared;
    const store = machines.take(kernel);
    try {
      return await actions.adopt(store, fork, run);
    } finally {
      machines.giveBack(store);
    }
  }

  private async snapshot(): Promise<void> {
    const { store } = this.shared;
    if (!store) {
      return;
    }
    this.show('busy');
    try {
      const done = await this.shared.actions.snapshot(store);
      this.show(done.status === 'ok' ? 'done' : 'failed');
    } catch (error) {
      this.show('failed');
      throw error;
    }
  }

  /** Shows how a snapshot goes; what came of it is forgotten after a while. */
  private show(condition: '' | 'busy' | 'done' | 'failed'): void {
    const number = ++this.count;
    this.condition = condition;
    this.notify(SNAPSHOT);
    if (condition === 'done' || condition === 'failed') {
      setTimeout(() => {
        if (number === this.count) {
          this.show('');
        }
      }, SHOWN);
    }
  }

  private caption(): string {
    const { trans, store } = this.shared;
    switch (this.condition) {
      case 'busy':
        return trans.__('Taking a snapshot of the virtual machine');
      case 'done':
        return trans.__('The snapshot was taken');
      case 'failed':
        return trans.__('No snapshot was taken');
      default:
        return store?.doing
          ? trans.__('The virtual machine is busy: %1', store.doing)
          : trans.__('Take a snapshot of the virtual machine');
    }
  }

  private addWay(id: string, label: string, way: 'before' | 'after'): void {
    this.app.commands.addCommand(id, {
      label,
      isEnabled: () => this.way(way) !== null,
      execute: async () => {
        const [cell, to] = [this.tracker.activeCell, this.way(way)];
        if (cell && to) {
          await this.goTo(cell, to.id);
        }
      },
      describedBy: { args: NONE }
    });
  }

  private notify(...commands: string[]): void {
    commands.forEach(command => this.app.commands.notifyCommandChanged(command));
  }

  private way(way: 'before' | 'after'): Snapshot | null {
    const cell = this.tracker.activeCell;
    return cell ? (this.viewOf(cell)?.ways(cell)[way] ?? null) : null;
  }

  private forksOfActive(): Forks | null {
    const cell = this.tracker.activeCell;
    return cell ? (this.viewOf(cell)?.forks(cell) ?? null) : null;
  }

  /** Makes a cell the one that commands are about. */
  private activate(cell: Cell): void {
    const notebook = this.viewOf(cell)?.notebook;
    if (notebook) {
      if (this.tracker.currentWidget !== notebook) {
        this.app.shell.activateById(notebook.id);
      }
      notebook.content.activeCellIndex = notebook.content.widgets.indexOf(cell);
      notebook.content.deselectAll();
    }
  }
}

/** The forks of a run, in the main area. */
class Side extends MainAreaWidget {
  readonly run: number;

  constructor(run: number, content: Columns) {
    super({ content });
    this.run = run;
    this.id = `avm-forks-${crypto.randomUUID()}`;
  }
}

function isOurs({ store }: IMachines): boolean {
  return !!store && !['foreign', 'missing', 'loading', 'gone'].includes(store.phase);
}
