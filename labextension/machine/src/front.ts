// Follows the notebook in front, and holds the store of its kernel.

import type { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import type { TranslationBundle } from '@jupyterlab/translation';
import { Signal } from '@lumino/signaling';

import { Actions } from './actions.ts';
import type { Machines } from './machines.ts';
import type { Store } from './model/store.ts';
import type { IMachines } from './tokens.ts';

export class Front implements IMachines {
  readonly machines: Machines;
  readonly actions: Actions;
  readonly trans: TranslationBundle;
  readonly moved: Signal<IMachines, void> = new Signal<IMachines, void>(this);
  readonly changed: Signal<IMachines, void> = new Signal<IMachines, void>(this);
  notebook: NotebookPanel | null = null;
  store: Store | null = null;
  private endListening = (): void => undefined;

  constructor(tracker: INotebookTracker | null, machines: Machines, trans: TranslationBundle) {
    this.machines = machines;
    this.trans = trans;
    this.actions = new Actions(machines.api, trans);
    tracker?.currentChanged.connect((_, notebook) => this.follow(notebook));
    this.follow(tracker?.currentWidget ?? null);
  }

  private follow(notebook: NotebookPanel | null): void {
    const before = this.notebook?.sessionContext;
    before?.kernelChanged.disconnect(this.look);
    before?.statusChanged.disconnect(this.turn);
    this.notebook = notebook;
    notebook?.sessionContext.kernelChanged.connect(this.look);
    notebook?.sessionContext.statusChanged.connect(this.turn);
    this.look();
  }

  /** Takes the store of the kernel that is in front now. */
  private readonly look = (): void => {
    const kernel = this.notebook?.sessionContext.session?.kernel?.id ?? '';
    if (kernel !== (this.store?.kernel ?? '')) {
      const before = this.store;
      this.endListening();
      this.store = kernel ? this.machines.take(kernel) : null;
      this.endListening = this.store?.listen(() => this.changed.emit()) ?? ((): void => undefined);
      if (before) {
        this.machines.giveBack(before);
      }
    }
    this.moved.emit();
    this.changed.emit();
  };

  /** A kernel that was started anew has another machine. */
  private readonly turn = (_: unknown, status: string): void => {
    if (status === 'starting' || status === 'restarting' || status === 'dead' || status === 'autorestarting') {
      this.store?.refresh();
    }
  };
}
