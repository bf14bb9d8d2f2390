// Keeps with each cell the record of the run that its outputs are of. Which cell was run is told by the request, which
// this page sent, and what came of it by the reply's metadata, which the host wrote; of outputs nothing is believed.

import type { ICellModel } from '@jupyterlab/cells';
import type { NotebookPanel } from '@jupyterlab/notebook';
import type { Kernel } from '@jupyterlab/services';
import type { IDisposable } from '@lumino/disposable';

import { checked, isSame, KEY, recorded, type Ran } from './record.ts';

/** How many cells may wait for their reply. */
const MOST_WAITING = 10_000;

export class Recorder implements IDisposable {
  isDisposed = false;
  private readonly notebook: NotebookPanel;
  private readonly written: () => void;
  private readonly cells = new Map<string, string>();
  private kernel: Kernel.IKernelConnection | null = null;

  /** @param written Called whenever a record may have changed. */
  constructor(notebook: NotebookPanel, written: () => void) {
    this.notebook = notebook;
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
        this.write(cell, recorded(msg.metadata, kernel.id));
      }
    }
  };

  private write(id: string, ran: Ran | null): void {
    const cell = [...(this.notebook.content.model?.cells ?? [])].find(one => one.id === id);
    if (cell && cell.type === 'code' && !isSame(recordOf(cell), ran)) {
      if (ran) {
        cell.setMetadata(KEY, ran);
      } else {
        cell.deleteMetadata(KEY);
      }
    }
    this.written();
  }
}

/** Returns the record that is kept with a cell. */
export function recordOf(cell: ICellModel): Ran | null {
  return checked(cell.getMetadata(KEY));
}
