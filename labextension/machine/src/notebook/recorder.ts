// Keeps with each cell the record of the run that its outputs are of, and with the notebook in what machine that was. Which
// cell was run is told by the request, which this page sent, and what came of it by the reply's metadata, which the host
// wrote; of outputs nothing is believed.

import type { ICellModel } from '@jupyterlab/cells';
import type { NotebookPanel } from '@jupyterlab/notebook';
import type { Kernel } from '@jupyterlab/services';
import type { IDisposable } from '@lumino/disposable';

import { checked, KEY, recorded, type Kept, type Ran } from './record.ts';

/** How many cells may wait for their reply. */
const MOST_WAITING = 10_000;

/** Tells of the machine under the notebook. */
export interface Source {
  /** What it is and may do, as far as this page knows it: another text when that has changed. */
  about(): string;
  /** Returns what a notebook keeps of the machine; fails if there is none. */
  provenance(kernel: string): Promise<Record<string, unknown>>;
}

export class Recorder implements IDisposable {
  isDisposed = false;
  private readonly notebook: NotebookPanel;
  private readonly source: Source;
  private readonly written: () => void;
  private readonly cells = new Map<string, string>();
  private kernel: Kernel.IKernelConnection | null = null;
  private described = '';

  /** @param written Called whenever a record may have changed. */
  constructor(notebook: NotebookPanel, source: Source, written: () => void) {
    this.notebook = notebook;
    this.source = source;
    this.written = written;
    notebook.sessionContext.kernelChanged.connect(this.follow);
    this.follow();
  }

  dispose(): void {
    this.isDisposed = true;
    this.notebook.sessionContext.kernelChanged.disconnect(this.follow);
    this.kernel?.anyMessage.disconnect(this.hear);
    this.cells.clear();
  }

  private readonly follow = (): void => {
    this.kernel?.anyMessage.disconnect(this.hear);
    this.cells.clear();
    this.kernel = this.notebook.sessionContext.session?.kernel ?? null;
    this.kernel?.anyMessage.connect(this.hear);
  };

  private readonly hear = (kernel: Kernel.IKernelConnection, { msg, direction }: Kernel.IAnyMessageArgs): void => {
    if (direction === 'send' && msg.header.msg_type === 'execute_request') {
      const cell = msg.metadata.cellId;
      if (typeof cell === 'string' && this.cells.size < MOST_WAITING) {
        this.cells.set(msg.header.msg_id, cell);
        this.write(cell, null);
      }
    } else if (direction === 'recv' && msg.channel === 'shell' && msg.header.msg_type === 'execute_reply') {
      const request = 'msg_id' in msg.parent_header ? msg.parent_header.msg_id : '';
      const cell = this.cells.get(request);
      if (cell !== undefined) {
        this.cells.delete(request);
        const kept = recorded(msg.metadata, kernel.id);
        this.write(cell, kept);
        if (kept) {
          void this.describe(kernel, kept);
        }
      }
    }
  };

  private write(id: string, kept: Kept | null): void {
    const cell = [...(this.notebook.content.model?.cells ?? [])].find(one => one.id === id);
    if (cell && cell.type === 'code' && !isSame(cell.getMetadata(KEY), kept ?? undefined)) {
      if (kept) {
        cell.setMetadata(KEY, kept);
      } else {
        cell.deleteMetadata(KEY);
      }
    }
    this.written();
  }

  /** Keeps with the notebook in what machine its cells run, if that may be another one, or a magic may have changed it. */
  private async describe(kernel: Kernel.IKernelConnection, ran: Ran): Promise<void> {
    const about = JSON.stringify([kernel.id, ran.vm, this.source.about()]);
    if (about === this.described && !ran.host) {
      return;
    }
    this.described = about;
    let kept: Record<string, unknown>;
    try {
      kept = await this.source.provenance(kernel.id);
    } catch {
      this.described = ''; // there is no machine any more, or the server is gone: the next cell asks again
      return;
    }
    const model = this.notebook.content.model;
    if (model && !this.isDisposed && kernel === this.kernel && !isSame(model.getMetadata(KEY), kept)) {
      model.setMetadata(KEY, kept);
    }
  }
}

/** Returns the record that is kept with a cell. */
export function recordOf(cell: ICellModel): Ran | null {
  return checked(cell.getMetadata(KEY));
}

function isSame(one: unknown, other: unknown): boolean {
  return JSON.stringify(one) === JSON.stringify(other);
}
