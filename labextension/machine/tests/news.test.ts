import assert from 'node:assert/strict';
import { test } from 'node:test';

import { News } from '../src/model/news.ts';
import type { Store } from '../src/model/store.ts';

/** A store as far as news look at it, and a clock that is set by hand. */
class Bed {
  told: string[] = [];
  phase = 'running';
  machine: object | null = null;
  tree: object | null = null;
  isClosed = false;
  stopped = '';
  private hear = (): void => undefined;
  private waiting: (() => void)[] = [];
  private found = '';

  constructor() {
    const clock = { now: () => 0, after: (_: number, call: () => void) => (this.waiting.push(call), () => undefined) };
    new News(this as unknown as Store, kind => this.told.push(kind), clock);
  }

  listen(listener: () => void): () => void {
    this.hear = listener;
    return () => undefined;
  }

  runs(vm = 'vm-1', blocked = 0, refused = 0, anomalies = 0): this {
    this.phase = 'running';
    this.machine = { vm, blocked, network: { refused }, anomalies };
    this.hear();
    return this;
  }

  ends(phase = 'ended'): this {
    this.phase = phase;
    this.hear();
    return this;
  }

  takes(used: number): this {
    this.tree = { used, quota: 100 };
    this.hear();
    return this;
  }

  async later(found = this.phase): Promise<string[]> {
    this.found = found;
    this.waiting.splice(0).forEach(call => call());
    await new Promise(setImmediate);
    return this.told;
  }

  async check(): Promise<void> {
    this.phase = this.found;
  }
}

test('a machine that ends is told of, once', async () => {
  const bed = new Bed().runs().ends();
  assert.deepEqual(bed.told, []);
  assert.deepEqual(await bed.ends().later(), ['ended']);
  assert.deepEqual(await bed.ends().later(), ['ended']);
  assert.deepEqual(await bed.runs('vm-2').ends().later(), ['ended', 'ended']);
});

test('a machine that another one takes the place of is not told of', async () => {
  assert.deepEqual(await new Bed().runs().ends().runs('vm-2').later(), []);
  assert.deepEqual(await new Bed().runs().ends().ends('gone').later(), []);
  assert.deepEqual(await new Bed().runs().ends().later('starting'), []);
  assert.deepEqual(await new Bed().runs().ends('restarting').later(), []);
});

test('a machine that the user has had stopped, or does not look at any more, is not told of', async () => {
  const stopped = new Bed().runs();
  stopped.stopped = 'vm-1';
  assert.deepEqual(await stopped.ends().later(), []);
  assert.deepEqual(await stopped.runs('vm-2').ends().later(), ['ended']);
  const closed = new Bed().runs().ends();
  closed.isClosed = true;
  assert.deepEqual(await closed.later(), []);
});

test('a machine that had ended before the page knew it is not told of', async () => {
  assert.deepEqual(await new Bed().ends().later(), []);
});

test('the first thing that is blocked and the first that is refused are told of, and no other', () => {
  const bed = new Bed().runs('vm-1', 0, 0).runs('vm-1', 1, 0);
  assert.deepEqual(bed.told, ['blocked']);
  bed.runs('vm-1', 5, 2).runs('vm-1', 9, 9);
  assert.deepEqual(bed.told, ['blocked', 'refused']);
});

test('the first thing that is unusual is told of, and no other', () => {
  const bed = new Bed().runs().runs('vm-1', 0, 0, 1);
  assert.deepEqual(bed.told, ['unusual']);
  assert.deepEqual(bed.runs('vm-1', 0, 0, 3).told, ['unusual']);
  assert.deepEqual(new Bed().runs('vm-1', 0, 0, 2).runs('vm-1', 0, 0, 2).told, []);
});

test('what was blocked before the page knew of it is no news', () => {
  const bed = new Bed().runs('vm-1', 7, 7).runs('vm-1', 7, 7);
  assert.deepEqual(bed.told, []);
  assert.deepEqual(bed.runs('vm-2', 9, 9).runs('vm-2', 9, 10).told, ['refused']);
});

test('room that runs out is told of each time that it does', () => {
  const bed = new Bed().takes(50).takes(91).takes(95);
  assert.deepEqual(bed.told, ['full']);
  assert.deepEqual(bed.takes(20).takes(99).told, ['full', 'full']);
  assert.deepEqual(new Bed().takes(99).told, []);
});
