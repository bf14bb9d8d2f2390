import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { NotebookPanel } from '@jupyterlab/notebook';

import { Recorder } from '../src/notebook/recorder.ts';

type Slot = (sender: unknown, value: unknown) => void;

class Told {
  readonly slots = new Set<Slot>();
  connect = (slot: Slot): unknown => this.slots.add(slot);
  disconnect = (slot: Slot): unknown => this.slots.delete(slot);
  tell(sender: unknown, value: unknown = undefined): void {
    this.slots.forEach(slot => slot(sender, value));
  }
}

class Kernel {
  readonly anyMessage = new Told();
  readonly id: string;

  constructor(id = 'k-1') {
    this.id = id;
  }

  send(msg_id: string, cellId: unknown): void {
    const msg = { channel: 'shell', header: { msg_type: 'execute_request', msg_id }, metadata: { cellId } };
    this.anyMessage.tell(this, { direction: 'send', msg });
  }

  reply(msg_id: string, metadata: unknown, change: object = {}): void {
    const header = { msg_type: 'execute_reply', msg_id: 'other' };
    const msg = { channel: 'shell', header, parent_header: { msg_id }, metadata, ...change };
    this.anyMessage.tell(this, { direction: 'recv', msg });
  }
}

class Cell {
  readonly id: string;
  readonly type: string;
  metadata: Record<string, unknown> = {};
  writes = 0;

  constructor(id: string, type = 'code') {
    this.id = id;
    this.type = type;
  }

  getMetadata(key: string): unknown {
    return this.metadata[key];
  }

  setMetadata(key: string, value: unknown): void {
    this.writes += 1;
    this.metadata[key] = value;
  }

  deleteMetadata(key: string): void {
    this.writes += 1;
    delete this.metadata[key];
  }
}

class Notebook {
  readonly kernelChanged = new Told();
  readonly cells = [new Cell('a'), new Cell('b'), new Cell('text', 'markdown')];
  kernel: Kernel | null = new Kernel();
  told = 0;
  readonly recorder: Recorder;

  constructor() {
    const notebook = this;
    const panel = {
      content: { model: { cells: this.cells } },
      sessionContext: {
        kernelChanged: this.kernelChanged,
        get session() {
          return { kernel: notebook.kernel };
        }
      }
    };
    this.recorder = new Recorder(panel as unknown as NotebookPanel, () => (this.told += 1));
  }

  get live(): Kernel {
    assert.ok(this.kernel);
    return this.kernel;
  }

  run(cell: Cell): number | undefined {
    return (cell.metadata.agentvm as { run: number } | undefined)?.run;
  }
}

function metadata(run: number): object {
  return { agentvm: { run, vm: 'vm-1', snapshot: '', facts: { cpu_seconds: 1, snapshot_before: '', snapshot_after: '' } } };
}

test('each cell gets the record of its own run, in whatever order replies come', () => {
  const notebook = new Notebook();
  const [a, b] = notebook.cells;
  notebook.live.send('1', 'a');
  notebook.live.send('2', 'b');
  notebook.live.reply('2', metadata(8));
  notebook.live.reply('1', metadata(7));
  assert.deepEqual([notebook.run(a), notebook.run(b)], [7, 8]);
  assert.deepEqual(a.metadata.agentvm, { run: 7, vm: 'vm-1', base: '', after: '', kernel: 'k-1' });
});

test('a cell that runs again, or did not run, has no record of before', () => {
  const notebook = new Notebook();
  const [a] = notebook.cells;
  notebook.live.send('1', 'a');
  notebook.live.reply('1', metadata(7));
  notebook.live.send('2', 'a');
  assert.equal(notebook.run(a), undefined);
  notebook.live.reply('2', { status: 'aborted' });
  assert.equal(notebook.run(a), undefined);
});

test('nothing but the reply to what this page has sent is believed', () => {
  const notebook = new Notebook();
  const [a] = notebook.cells;
  notebook.live.send('1', 'a');
  notebook.live.reply('unasked', metadata(1));
  notebook.live.reply('1', metadata(2), { channel: 'iopub' });
  notebook.live.reply('1', metadata(3), { header: { msg_type: 'display_data', msg_id: 'x' } });
  notebook.live.anyMessage.tell(notebook.live, {
    direction: 'recv',
    msg: { channel: 'shell', header: { msg_type: 'execute_request', msg_id: '9' }, metadata: { cellId: 'a' } }
  });
  notebook.live.reply('9', metadata(4));
  assert.equal(notebook.run(a), undefined);
  notebook.live.reply('1', metadata(5));
  notebook.live.reply('1', metadata(6));
  assert.equal(notebook.run(a), 5);
});

test('a reply that says what is known already, or of a cell that is gone, changes nothing', () => {
  const notebook = new Notebook();
  const [a] = notebook.cells;
  for (const [id, cell] of [['1', 'text'], ['2', 'none'], ['3', 7], ['4', undefined]] as const) {
    notebook.live.send(id, cell);
    notebook.live.reply(id, metadata(1));
  }
  assert.ok(notebook.cells.every(cell => cell.writes === 0));
  notebook.live.send('5', 'a');
  notebook.live.reply('5', {});
  assert.equal(a.writes, 0);
});

test('another kernel is followed in place of the one before, and none once that is over', () => {
  const notebook = new Notebook();
  const [a] = notebook.cells;
  const before = notebook.live;
  before.send('1', 'a');
  notebook.kernel = new Kernel('k-2');
  notebook.kernelChanged.tell(notebook);
  before.reply('1', metadata(1));
  assert.equal(before.anyMessage.slots.size, 0);
  notebook.live.send('2', 'a');
  notebook.live.reply('2', metadata(2));
  assert.equal(notebook.run(a), 2);
  notebook.recorder.dispose();
  assert.equal(notebook.live.anyMessage.slots.size + notebook.kernelChanged.slots.size, 0);
});
