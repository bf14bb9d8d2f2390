import assert from 'node:assert/strict';
import { test } from 'node:test';

import { isLabel } from '../src/model/label.ts';

test('labels are valid as the host has it', () => {
  for (const label of ['', 'a', '7', 'data-loaded_v1.2', 'x'.repeat(64), '0123456789abc']) {
    assert.ok(isLabel(label), label);
  }
});

test('what the host refuses is not valid', () => {
  for (const label of ['-a', '.a', 'a b', 'ä', 'a\n', 'a/b', '<b>', 'x'.repeat(65), '0123456789ab']) {
    assert.ok(!isLabel(label), label);
  }
});
