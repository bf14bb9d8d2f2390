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
  limits = '';
  asked: string[] = [];
  metadata: Record<string, unknown> = {};
  provenance: () => Promise<Record<string, unknown>> = async () => ({ image: `i-${this.asked.length}` });
  readonly recorder: Recorder;

  constructor() {
    const notebook = this;
    const panel = {
      content: {
        model: {
          cells: this.cells,
          getMetadata: (key: string): unknown => this.metadata[key],
          setMetadata: (key: string, value: unknown): unknown => (this.metadata[key] = value)
        }
      },
      sessionContext: {
        kernelChanged: this.kernelChanged,
        get session() {
          return { kernel: notebook.kernel };
        }
      }
    };
    const source = {
      about: () => this.limits,
      provenance: (kernel: string) => {
        this.asked.push(kernel);
        return this.provenance();
      }
    };
    this.recorder = new Recorder(panel as unknown as NotebookPanel, source, () => (this.told += 1));
  }

  get live(): Kernel {
    assert.ok(this.kernel);
    return this.kernel;
  }

  run(cell: Cell): number | undefined {
    return (cell.metadata.agentvm as { run: number } | undefined)?.run;
  }
}

function metadata(run: number, vm = 'vm-1'): object {
  return { agentvm: { run, vm, snapshot: '', facts: { cpu_seconds: 1, snapshot_before: '', snapshot_after: '' } } };
}

/** Lets what waits for an answer go on. */
async function settled(): Promise<void> {
  await new Promise(resolve => setImmediate(resolve));
}

test('each cell gets the record of its own run, in whatever order replies come', () => {
  const notebook = new Notebook();
  const [a, b] = notebook.cells;
  notebook.live.send('1', 'a');
  notebook.live.send('2', 'b');
  notebook.live.reply('2', metadata(8));
  notebook.live.reply('1', metadata(7));
  assert.deepEqual([notebook.run(a), notebook.run(b)], [7, 8]);
  assert.deepEqual(a.metadata.agentvm, { run: 7, vm: 'vm-1', base: '', after: '', kernel: 'k-1', facts: { cpu_seconds: 1 } });
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

test('with the notebook its machine is kept, and asked for again only when that may be another', async () => {
  const notebook = new Notebook();
  const run = async (id: string, said: object): Promise<unknown> => {
    notebook.live.send(id, 'a');
    notebook.live.reply(id, said);
    await settled();
    return notebook.metadata.agentvm;
  };
  assert.deepEqual(await run('1', metadata(1)), { image: 'i-1' });
  assert.deepEqual(await run('2', metadata(2)), { image: 'i-1' });
  assert.deepEqual(await run('3', metadata(3, 'vm-2')), { image: 'i-2' });
  notebook.limits = 'other';
  assert.deepEqual(await run('4', metadata(4, 'vm-2')), { image: 'i-3' });
  assert.deepEqual(await run('5', { agentvm: { run: 5, vm: 'vm-2', snapshot: '' } }), { image: 'i-4' }); // a magic
  assert.deepEqual(await run('6', {}), { image: 'i-4' });
  assert.deepEqual(notebook.asked, ['k-1', 'k-1', 'k-1', 'k-1']);
});

test('where nobody tells of the machine what is known stays, and the next cell asks again', async () => {
  const notebook = new Notebook();
  const tells = notebook.provenance;
  notebook.provenance = () => Promise.reject(new Error('no machine'));
  notebook.live.send('1', 'a');
  notebook.live.reply('1', metadata(1));
  await settled();
  assert.deepEqual(notebook.metadata, {});
  notebook.provenance = tells;
  notebook.live.send('2', 'a');
  notebook.live.reply('2', metadata(2));
  await settled();
  assert.deepEqual(notebook.metadata.agentvm, { image: 'i-2' });
});

test('what is told of a machine after another kernel was taken is not kept', async () => {
  const notebook = new Notebook();
  notebook.live.send('1', 'a');
  notebook.live.reply('1', metadata(1));
  notebook.kernel = new Kernel('k-2');
  notebook.kernelChanged.tell(notebook);
  await settled();
  assert.deepEqual([notebook.asked, notebook.metadata], [['k-1'], {}]);
});
