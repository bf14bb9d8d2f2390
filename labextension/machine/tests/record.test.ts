import assert from 'node:assert/strict';
import { test } from 'node:test';

import { checked, recorded } from '../src/notebook/record.ts';

const FACTS = { seconds: 1, cpu_seconds: 0.5, snapshot_before: '0'.repeat(12), snapshot_after: '1'.repeat(12) };
const REPLY = { started: 'now', agentvm: { run: 3, vm: 'vm-0a', snapshot: '2'.repeat(12), facts: FACTS } };
const RAN = { run: 3, vm: 'vm-0a', base: '0'.repeat(12), after: '1'.repeat(12), kernel: 'k-1' };

test('a reply tells the run, the machine and both snapshots', () => {
  assert.deepEqual(recorded(REPLY, 'k-1'), { ...RAN, facts: { seconds: 1, cpu_seconds: 0.5 } });
});

test('what the host says of a run besides is kept as far as there is room', () => {
  const said = { code: 'c'.repeat(64), forks: { count: 2, seed: '0'.repeat(32) }, copied: { way: 'push', path: 'x', size: 3 } };
  const facts = { ...FACTS, hosts: Array.from({ length: 10 }, () => 'h'.repeat(100)) };
  const { snapshot_before, snapshot_after, ...cost } = facts;
  const kept = recorded({ agentvm: { ...REPLY.agentvm, ...said, facts, error: 'no', taken: 1 } }, 'k-1');
  assert.deepEqual(kept, { ...RAN, ...said, facts: cost });
  const long = recorded({ agentvm: { ...REPLY.agentvm, ...said, facts, shared: { path: '\u2603'.repeat(400) } } }, 'k-1');
  assert.deepEqual(long, { ...RAN, ...said, shared: { path: '\u2603'.repeat(400) } });
  assert.deepEqual(checked(long), RAN);
});

test('what was run by the host is told by what was not measured of it', () => {
  const { snapshot_before, snapshot_after, seconds } = FACTS;
  const agentvm = { ...REPLY.agentvm, facts: { snapshot_before, snapshot_after, seconds } };
  assert.deepEqual(recorded({ agentvm }, 'k-1'), { ...RAN, host: true, facts: { seconds } });
});

test('without facts the place of the machine is what is known', () => {
  const { facts: _, ...agentvm } = REPLY.agentvm;
  assert.deepEqual(recorded({ agentvm }, 'k'), {
    ...{ run: 3, vm: 'vm-0a', base: '2'.repeat(12), after: '2'.repeat(12), kernel: 'k' },
    host: true,
    facts: {}
  });
});

test('replies of other kernels, and of cells that did not run, tell nothing', () => {
  for (const metadata of [undefined, null, {}, { status: 'aborted' }, { agentvm: { run: 1 } }, { agentvm: 7 }]) {
    assert.equal(recorded(metadata, 'k'), null);
  }
});

test('a record is read with nothing else in it', () => {
  assert.deepEqual(checked({ ...RAN, more: '<b>', __proto__: { x: 1 } }), RAN);
  assert.deepEqual(checked({ ...RAN, base: '', host: true }), { ...RAN, base: '', host: true });
  assert.deepEqual(checked({ ...RAN, host: 'yes' }), RAN);
});

test('what is no record is none', () => {
  const wrong: object[] = [
    { run: '3' }, { run: 0 }, { run: 1.5 }, { run: NaN }, { run: 2 ** 40 }, { vm: '' }, { vm: 'a b' }, { vm: 7 },
    { vm: 'v'.repeat(65) }, { base: 'xyz' }, { base: '0'.repeat(13) }, { base: `${'0'.repeat(12)}\n` },
    { after: null }, { kernel: '../k' }
  ];
  for (const change of wrong) {
    assert.equal(checked({ ...RAN, ...change }), null, JSON.stringify(change));
  }
  for (const value of [null, undefined, 'record', [], 3]) {
    assert.equal(checked(value), null);
  }
});
