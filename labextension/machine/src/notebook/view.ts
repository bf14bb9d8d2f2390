// What one view of a notebook shows of the machine: marks at prompts, and which outputs are not of the present.

import type { Cell, ICodeCellModel } from '@jupyterlab/cells';
import type { NotebookPanel } from '@jupyterlab/notebook';
import type { IOutputModel } from '@jupyterlab/rendermime';
import type { IDisposable } from '@lumino/disposable';

import { called } from '../actions.ts';
import type { Machines } from '../machines.ts';
import { Pace } from '../model/pace.ts';
import type { Store } from '../model/store.ts';
import type { Machine, Tree } from '../model/wire.ts';
import { forksOf, MIME, type Forks } from './forks.ts';
import { draw, isMisplaced, type Drawn, type Words } from './marks.ts';
import { Recorder, recordOf } from './recorder.ts';
import { Place, type Present, type Standing, type Ways } from './standing.ts';

/** Milliseconds between two looks at all cells. */
const PAUSE = 150;
const NOTHING: Drawn = { state: 'current', mark: false, forks: false, branch: '', branchName: '' };
const NO_WAYS: Ways = { before: null, after: null };

export class View implements IDisposable {
  isDisposed = false;
  readonly notebook: NotebookPanel;
  store: Store | null = null;
  private readonly machines: Machines;
  private readonly words: Words;
  private readonly recorder: Recorder;
  private readonly pace = new Pace(() => this.look(), PAUSE);
  private readonly drawn = new WeakMap<Cell, string>();
  private readonly awaited = new WeakSet<Cell>();
  private tree: Tree | null = null;
  private place: Place | null = null;
  private endListening = (): void => undefined;

  constructor(notebook: NotebookPanel, machines: Machines, words: Words) {
    this.notebook = notebook;
    this.machines = machines;
    this.words = words;
    const source = {
      about: () => about(this.store?.machine ?? null),
      provenance: (kernel: string) => machines.api.provenance(kernel)
    };
    this.recorder = new Recorder(notebook, source, () => this.pace.ask());
    notebook.sessionContext.kernelChanged.connect(this.follow);
    notebook.content.modelContentChanged.connect(this.ask);
    notebook.content.cellInViewportChanged.connect(this.ask);
    notebook.disposed.connect(this.dispose, this);
    this.follow();
  }

  dispose(): void {
    if (this.isDisposed) {
      return;
    }
    this.isDisposed = true;
    this.pace.stop();
    this.recorder.dispose();
    this.endListening();
    this.giveBack();
    this.notebook.sessionContext.kernelChanged.disconnect(this.follow);
    this.notebook.content.modelContentChanged.disconnect(this.ask);
    this.notebook.content.cellInViewportChanged.disconnect(this.ask);
  }

  /** Returns the snapshots before and after what a cell ran, as far as one can go back there. */
  ways(cell: Cell): Ways {
    const ran = recordOf(cell.model);
    return ran && this.place && this.store?.phase === 'running' ? this.place.ways(ran) : NO_WAYS;
  }

  /** Returns where a cell's outputs stand; null where that is not known. */
  standing(cell: Cell): Standing | null {
    const ran = recordOf(cell.model);
    return ran && this.place && isOurs(this.store) ? this.place.standing(ran) : null;
  }

  /** Returns the forks whose outputs a cell has. */
  forks(cell: Cell): Forks | null {
    return isOurs(this.store) ? forksOf(displays(cell)) : null;
  }

  /** Whether forks that a cell shows may be the machine's last: those that its own run made, in this machine. */
  owns(cell: Cell, forks: Forks): boolean {
    const ran = recordOf(cell.model);
    const state = this.standing(cell)?.state;
    return ran?.run === forks.run && ran.kernel === this.store?.kernel && state !== undefined && state !== 'earlier';
  }

  private readonly ask = (): void => this.pace.ask();

  private readonly follow = (): void => {
    const kernel = this.notebook.sessionContext.session?.kernel?.id ?? '';
    if (kernel !== (this.store?.kernel ?? '')) {
      this.endListening();
      const before = this.store;
      this.store = kernel ? this.machines.take(kernel) : null;
      this.endListening = this.store?.listen(this.ask) ?? ((): void => undefined);
      if (before) {
        this.machines.giveBack(before);
      }
      this.tree = this.place = null;
    }
    this.pace.ask();
  };

  private giveBack(): void {
    if (this.store) {
      this.machines.giveBack(this.store);
      this.store = null;
    }
  }

  /** Draws what has changed. */
  private look(): void {
    if (this.isDisposed || this.notebook.isDisposed) {
      return;
    }
    const tree = this.store?.tree ?? null;
    if (tree !== this.tree) {
      this.tree = tree;
      this.place = tree && 'way' in tree ? new Place(tree as unknown as Present) : null;
    }
    this.notebook.content.widgets.forEach(cell => this.drawCell(cell));
  }

  private drawCell(cell: Cell): void {
    if (cell.model.type !== 'code' || cell.isDisposed) {
      return;
    }
    if (cell.isPlaceholder() && !this.awaited.has(cell)) {
      this.awaited.add(cell);
      void cell.ready.then(this.ask);
    }
    const wanted = this.wanted(cell);
    const said = JSON.stringify([wanted, cell.isPlaceholder()]);
    if (this.drawn.get(cell) !== said || isMisplaced(cell)) {
      this.drawn.set(cell, said);
      draw(cell, wanted, this.words);
    }
  }

  private wanted(cell: Cell): Drawn {
    if (!isOurs(this.store)) {
      return NOTHING;
    }
    const standing = outputsOf(cell).length ? this.standing(cell) : null;
    const branch = standing?.state !== 'current' && this.store?.phase === 'running' ? standing?.branch : null;
    const ways = this.store?.machine?.travelling === false ? NO_WAYS : this.ways(cell);
    return {
      state: standing?.state ?? 'current',
      mark: !!(ways.before ?? ways.after),
      forks: displays(cell).some(one => MIME in one.data),
      branch: branch?.id ?? '',
      branchName: branch ? called(branch, this.words.trans) : ''
    };
  }
}

/** Whether a kernel's machine is, or was a moment ago, one of AgentVM's. */
function isOurs(store: Store | null): boolean {
  return store !== null && ['running', 'ended', 'starting', 'restarting'].includes(store.phase);
}

/** Returns what a machine may do, as a text that differs when that does. */
function about(machine: Machine | null): string {
  const network = machine?.network;
  return JSON.stringify([machine?.limits, network?.mode, network?.allow, network?.deny]);
}

/** Returns the outputs of a cell that have data by MIME type. */
function displays(cell: Cell): IOutputModel[] {
  return outputsOf(cell).filter(one => one.type === 'display_data');
}

function outputsOf(cell: Cell): IOutputModel[] {
  const outputs = cell.model.type === 'code' ? (cell.model as ICodeCellModel).outputs : null;
  return outputs ? Array.from({ length: outputs.length }, (_, place) => outputs.get(place)) : [];
}
