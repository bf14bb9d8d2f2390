import assert from 'node:assert/strict';
import { test } from 'node:test';

import { beginning, plain, sentence } from '../src/model/plain.ts';

test('text of any language stays as it is', () => {
  assert.equal(plain('Größe 東京 🙂 <b>&amp;'), 'Größe 東京 🙂 <b>&amp;');
});

test('controls and what changes the direction of text are seen', () => {
  assert.equal(plain('a\nb\x1b[31m'), 'a␊b␛[31m');
  assert.equal(plain('evil\u202egpj.exe'), 'evil⟨U+202E⟩gpj.exe');
  for (const unseen of ['\u2066', '\u200b', '\u00ad', '\ufeff', '\u061c', '\u2028', '\u{e0041}', '\u0085', '\u007f']) {
    assert.match(plain(`a${unseen}b`), /^a⟨U\+[0-9A-F]+⟩b$/);
  }
});

test('what is long is cut between characters, and says so', () => {
  assert.equal(plain('🙂'.repeat(500), 3), '🙂🙂🙂…');
  assert.equal(plain('abc', 3), 'abc');
  assert.ok(plain('\u202e'.repeat(1e6), 100).length < 1000);
});

test('the beginning of a cell is its first line that says something', () => {
  assert.equal(beginning('\n\n   x = 1\ny = 2'), 'x = 1');
  assert.equal(beginning(''), '');
});

test('a sentence ends', () => {
  for (const text of ['It ended.', 'Ended?', 'It is ended …', 'Ended!']) {
    assert.equal(sentence(text), text);
  }
  assert.equal(sentence('No such file'), 'No such file.');
});
