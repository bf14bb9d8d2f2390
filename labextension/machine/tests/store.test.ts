import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { Clock } from '../src/model/pace.ts';
import { Pace } from '../src/model/pace.ts';
import { Refusal, Store, type Source } from '../src/model/store.ts';
import type { Anomaly, Done, Machine, Tree } from '../src/model/wire.ts';

class Time implements Clock {
  at = 0;
  waiting: { at: number; call: () => void }[] = [];

  now(): number {
    return this.at;
  }

  after(milliseconds: number, call: () => void): () => void {
    const one = { at: this.at + milliseconds, call };
    this.waiting.push(one);
    return () => void (this.waiting = this.waiting.filter(other => other !== one));
  }

  pass(milliseconds: number): void {
    this.at += milliseconds;
    const due = this.waiting.filter(one => one.at <= this.at);
    this.waiting = this.waiting.filter(one => one.at > this.at);
    due.forEach(one => one.call());
  }
}

const RUNNING: Machine = { state: 'running', vm: 'vm-1', snapshot: '' };
const SEEN: Anomaly = {
  ...{ time: 1, vm: 'vm-1', rule: 'own', severity: 'warning', text: 'sent much', about: '', claimed: false, value: 2 },
  ...{ threshold: 1, response: 'note', outcome: '', is_over: false }
};
const TREE: Tree = { current: '', used: 0, quota: 0, snapshots: [] };

class Scripted implements Source {
  asked: string[] = [];
  now: Machine | Error = RUNNING;
  trees: (Tree | Error | Promise<Tree>)[] = [];

  host = async (): ReturnType<Source['host']> => {
    this.asked.push('host');
    return { version: '1', supervisor: 'absent', accelerator: '', findings: [] };
  };
  machine = async (): Promise<Machine> => {
    this.asked.push('machine');
    return given(this.now);
  };
  snapshots = async (): Promise<Tree> => {
    this.asked.push('snapshots');
    return given(this.trees.shift() ?? TREE);
  };
  connections = async (): ReturnType<Source['connections']> => {
    this.asked.push('connections');
    return [];
  };
  blocked = async (): ReturnType<Source['blocked']> => {
    this.asked.push('blocked');
    return [];
  };
  anomalies = async (): ReturnType<Source['anomalies']> => {
    this.asked.push('anomalies');
    return [SEEN];
  };
}

function given<T>(value: T | Error): T {
  if (value instanceof Error) {
    throw value;
  }
  return value;
}

/** Lets all that is not waiting for time happen. */
function settled(): Promise<void> {
  return new Promise(resolve => setImmediate(resolve));
}

async function started(source = new Scripted()): Promise<{ source: Scripted; time: Time; store: Store }> {
  const time = new Time();
  const store = new Store('k', source, time);
  store.refresh();
  await settled();
  return { source, time, store };
}

const refusal = (status: number, code: string): Refusal => new Refusal(status, { code, message: code, hint: 'h' });

test('a machine that runs is asked for all that there is of it', async () => {
  const { source, store } = await started();
  assert.equal(store.phase, 'running');
  assert.deepEqual(source.asked, ['machine', 'snapshots', 'connections', 'blocked', 'anomalies']);
  assert.deepEqual(store.anomalies, [SEEN]);
});

test('where no machine runs nothing more is asked', async () => {
  for (const state of ['foreign', 'none', 'starting', 'restarting', 'ended'] as const) {
    const source = new Scripted();
    source.now = { state };
    const { store, time } = await started(source);
    time.pass(1000);
    store.refresh();
    await settled();
    assert.equal(store.phase, state);
    assert.deepEqual(source.asked, ['machine', 'machine']);
  }
});

test('what becomes of a kernel that is started anew is asked until it is known', async () => {
  const source = new Scripted();
  source.now = { state: 'restarting' };
  const { store, time } = await started(source);
  assert.equal(store.phase, 'restarting');
  time.pass(2000);
  await settled();
  assert.deepEqual(source.asked, ['machine', 'machine']);
  source.now = RUNNING;
  time.pass(2000);
  await settled();
  assert.equal(store.phase, 'running');
  source.asked = [];
  time.pass(10_000);
  await settled();
  assert.deepEqual(source.asked, []);
});

test('an anomaly that is told of is asked for, and how the machine is now', async () => {
  const { source, time, store } = await started();
  source.asked = [];
  time.pass(1000);
  store.hear({ kernel_id: 'k', what: 'anomalies' });
  await settled();
  assert.deepEqual(source.asked, ['anomalies', 'machine']);
});

test('what refuses is told apart', async () => {
  for (const [status, code, phase] of [
    [404, '', 'missing'],
    [404, 'no_kernel', 'gone'],
    [0, 'lost', 'lost'],
    [500, 'supervisor', 'failed']
  ] as const) {
    const source = new Scripted();
    source.now = refusal(status, code);
    const { store } = await started(source);
    assert.equal(store.phase, phase);
    assert.equal(store.failure?.message, code);
  }
});

test('a store recovers when the server is there again', async () => {
  const { source, time, store } = await started();
  source.now = refusal(0, 'lost');
  time.pass(1000);
  store.refresh();
  await settled();
  assert.equal(store.phase, 'lost');
  source.now = RUNNING;
  source.asked = [];
  time.pass(1000);
  store.refresh();
  await settled();
  assert.equal(store.phase, 'running');
  assert.equal(store.failure, null);
  assert.ok(source.asked.includes('snapshots'));
});

test('when a machine has gone, it is asked what became of it', async () => {
  const { source, time, store } = await started();
  source.now = { state: 'ended', text: 'given back' };
  time.pass(1000);
  store.hear({ kernel_id: 'k', what: 'gone' });
  await settled();
  assert.deepEqual([store.phase, store.machine?.text], ['ended', 'given back']);
});

test('many events are two questions of each kind', async () => {
  const { source, time, store } = await started();
  source.asked = [];
  for (let number = 0; number < 100; number++) {
    store.hear({ kernel_id: 'k', what: 'connections' });
  }
  time.pass(500);
  await settled();
  assert.deepEqual(source.asked, ['connections', 'machine']);
  time.pass(5000);
  assert.deepEqual(source.asked, ['connections', 'machine']);
});

test('an answer that a later one overtook is dropped', async () => {
  const { source, time, store } = await started();
  let answer: (tree: Tree) => void = () => undefined;
  source.trees = [new Promise<Tree>(resolve => (answer = resolve)), { ...TREE, current: 'new' }];
  time.pass(1000);
  store.hear({ kernel_id: 'k', what: 'snapshots' });
  time.pass(1000);
  store.hear({ kernel_id: 'k', what: 'snapshots' });
  await settled();
  answer({ ...TREE, current: 'old' });
  await settled();
  assert.equal(store.tree?.current, 'new');
});

test('a part that is refused leaves the machine in sight', async () => {
  const { source, time, store } = await started();
  source.connections = () => Promise.reject(refusal(500, 'store'));
  time.pass(1000);
  store.hear({ kernel_id: 'k', what: 'connections' });
  await settled();
  assert.equal(store.phase, 'running');
  assert.equal(store.failure?.code, 'store');
});

test('one thing is done at a time, and what it throws is a refusal', async () => {
  const { store } = await started();
  let end: (done: Done) => void = () => undefined;
  const first = store.act('going back', () => new Promise<Done>(resolve => (end = resolve)));
  assert.equal(store.doing, 'going back');
  const second = await store.act('again', () => assert.fail('done twice'));
  assert.equal(second.error?.code, 'busy');
  end({ status: 'ok', text: 'there', error: null, snapshot: 'a' });
  assert.equal((await first).text, 'there');
  assert.equal(store.doing, '');
  const failed = await store.act('fail', () => Promise.reject(refusal(409, 'busy_vm')));
  assert.deepEqual([failed.status, failed.error?.code], ['error', 'busy_vm']);
});

test('going back is told, with where to', async () => {
  const { store } = await started();
  const told: string[] = [];
  store.onRestored(snapshot => told.push(snapshot));
  store.hear({ kernel_id: 'k', what: 'snapshots' });
  store.hear({ kernel_id: 'k', what: 'snapshots', restored: 'abc' });
  store.hear({ kernel_id: 'k', what: 'snapshots', restored: '' });
  assert.deepEqual(told, ['abc', '']);
});

test('measurements of another machine begin a new line', async () => {
  const source = new Scripted();
  const stats = {
    ...{ time: 1, cpu_percent: 1, memory: 1, memory_cost: 1, disk_read: 1, disk_written: 1, network_sent: 1 },
    ...{ network_received: 1, connections: 0, executing: true }
  };
  const { store, time } = await started(source);
  store.hear({ kernel_id: 'k', what: 'stats', stats });
  assert.equal(store.machine?.executing, true);
  assert.equal(store.series.points.length, 1);
  source.now = { ...RUNNING, vm: 'vm-2' };
  time.pass(1000);
  store.refresh();
  await settled();
  assert.equal(store.series.points.length, 0);
});

test('a closed store says and asks nothing any more', async () => {
  const { source, time, store } = await started();
  let told = 0;
  store.listen(() => told++);
  store.hear({ kernel_id: 'k', what: 'machine' });
  store.close();
  source.asked = [];
  time.pass(5000);
  await settled();
  assert.deepEqual([told, source.asked], [0, []]);
});

test('a pace calls at once, and then once a pause', () => {
  const time = new Time();
  let calls = 0;
  const pace = new Pace(() => calls++, 100, time);
  [1, 2, 3].forEach(() => pace.ask());
  assert.equal(calls, 1);
  time.pass(100);
  assert.equal(calls, 2);
  time.pass(1000);
  assert.equal(calls, 2);
  pace.ask();
  assert.equal(calls, 3);
});
