import assert from 'node:assert/strict';
import { test } from 'node:test';

import { forksOf, MIME } from '../src/notebook/forks.ts';

const FORK = {
  ...{ fork: 1, status: 'ok', seconds: 1.5, cpu_seconds: 1, memory: 10, kept: true, reason: '', blocked: 2 },
  outputs: [
    { output_type: 'stream', name: 'stdout', text: ['a\n', 'b\n'] },
    { output_type: 'error', ename: 'E', evalue: 'v', traceback: ['one', 'two'] },
    { output_type: 'execute_result', execution_count: 1, data: { 'text/plain': '1' }, metadata: {} }
  ]
};

function displayed(value: unknown): unknown[] {
  return [{ output_type: 'display_data', data: { 'text/plain': 'table', [MIME]: value }, metadata: {} }];
}

test('forks are read with what each showed', () => {
  const forks = forksOf(displayed({ run: 7, forks: [FORK, { ...FORK, fork: 2, kept: false }] }));
  assert.ok(forks);
  assert.equal(forks.run, 7);
  assert.deepEqual(forks.forks.map(one => [one.fork, one.kept]), [[1, true], [2, false]]);
  assert.equal(forks.forks[0].blocked, 2);
  assert.deepEqual(forks.forks[0].outputs, [
    { 'application/vnd.jupyter.stdout': 'a\nb\n' },
    { 'application/vnd.jupyter.stderr': 'one\ntwo' },
    { 'text/plain': '1' }
  ]);
});

test('other outputs have no forks', () => {
  for (const outputs of [[], [null], [3], [{ data: null }], [{ data: { 'text/plain': MIME } }]]) {
    assert.equal(forksOf(outputs), null);
  }
});

test('what is not as the host says it is not shown', () => {
  const wrong: object[] = [
    { fork: '1' }, { fork: -1 }, { seconds: Infinity }, { status: 'adopted' }, { kept: 'yes' }, { reason: 3 },
    { outputs: 'x' }, { memory: null }, { blocked: -1 }
  ];
  for (const change of wrong) {
    assert.equal(forksOf(displayed({ run: 1, forks: [{ ...FORK, ...change }] })), null, JSON.stringify(change));
  }
  for (const value of [null, 'x', { run: 1 }, { run: 'x', forks: [] }, { run: 1, forks: Array(65).fill(FORK) }]) {
    assert.equal(forksOf(displayed(value)), null);
  }
});

test('outputs that are none are left out, and of a frame its text is drawn', () => {
  const data = { 'text/html': '<IFRAME srcdoc="x"></IFRAME>', 'text/plain': 'plot' };
  const outputs = [
    ...[null, 'x', { output_type: 'widget' }],
    { output_type: 'display_data', data },
    { output_type: 'display_data', data: { 'text/html': ['<b>', 'x</b>'] } }
  ];
  assert.deepEqual(forksOf(displayed({ run: 1, forks: [{ ...FORK, outputs }] }))?.forks[0].outputs, [
    { 'text/plain': 'plot' },
    { 'text/html': '<b>x</b>' }
  ]);
});
