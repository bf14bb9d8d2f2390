import assert from 'node:assert/strict';
import { test } from 'node:test';

import { isOneHost } from '../src/model/hosts.ts';

test('names of hosts can be decided about', () => {
  for (const name of ['pypi.org', 'xn--bcher-kva.example', 'localhost', 'a-b.0.example']) {
    assert.ok(isOneHost(name), name);
  }
});

test('patterns, and what is no name, cannot', () => {
  const names = ['', '*', '*.com', '**.example.org', 'a.*', 'a b', 'a.com:22', 'a,b', 'A.com', 'a..b', '.', 'é.example'];
  for (const name of [...names, 'a'.repeat(64), 'a.'.repeat(130) + 'a', 'a\n', 'pypi.org...']) {
    assert.ok(!isOneHost(name), name);
  }
});
