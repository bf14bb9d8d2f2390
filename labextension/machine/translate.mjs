// Writes down what there is to translate, for translators: `npm run translate`; with --check, tells whether that is so.
//
// In the sources that is what the methods of a translation bundle are called with; in the schemas, what JupyterLab's
// server translates of them (jupyterlab_server/translation_utils.py, DEFAULT_SCHEMA_SELECTORS).

import { globSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import ts from 'typescript';

const HERE = dirname(fileURLToPath(import.meta.url));
const CATALOGUE = 'locale/agentvm_kernel.pot';
/** Methods of a bundle, with the number of texts that each takes. */
const METHODS = { __: 1, _n: 2 };
const CONTEXTS = [
  [/^properties\/.*\/(title|description)$/, 'settings'],
  [/^(title|description)$/, 'schema'],
  [/^jupyter\.lab\.setting-icon-label$/, 'settings'],
  [/^jupyter\.lab\.menus\/.*\/label$/, 'menu'],
  [/^jupyter\.lab\.toolbars\/.*\/label$/, 'toolbar']
];
const HEADER = `# What the JupyterLab extension of AgentVM Kernel says.
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\\n"
"Content-Transfer-Encoding: 8bit\\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\\n"
`;

/** What there is to translate, with the files that say it. */
const entries = new Map();

function add(file, texts, context = '') {
  const key = JSON.stringify([context, ...texts]);
  const entry = entries.get(key) ?? { context, texts, files: new Set() };
  entry.files.add(file);
  entries.set(key, entry);
}

function readSource(file) {
  const source = ts.createSourceFile(file, readFileSync(join(HERE, file), 'utf8'), ts.ScriptTarget.Latest, true);
  const visit = node => {
    const name = ts.isCallExpression(node) && ts.isPropertyAccessExpression(node.expression) && node.expression.name.text;
    if (Object.hasOwn(METHODS, name)) {
      const texts = node.arguments.slice(0, METHODS[name]);
      if (texts.length < METHODS[name] || !texts.every(ts.isStringLiteralLike)) {
        const { line } = source.getLineAndCharacterOfPosition(node.getStart());
        throw new Error(`${file}:${line + 1}: what is to be translated has to stand there as it is`);
      }
      add(file, texts.map(text => text.text));
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
}

function readSchema(file, value, path = '') {
  if (typeof value === 'string') {
    const found = CONTEXTS.find(([place]) => place.test(path));
    if (found && value) {
      add(file, [value], found[1]);
    }
  } else if (typeof value === 'object' && value !== null) {
    for (const [name, part] of Object.entries(value)) {
      readSchema(file, part, path ? `${path}/${name}` : name);
    }
  }
}

function written({ context, texts, files }) {
  const lines = [...files].map(file => `#: ${file}`);
  const ids = texts.map((text, place) => `${place ? 'msgid_plural' : 'msgid'} ${JSON.stringify(text)}`);
  const translations = texts.length > 1 ? ['msgstr[0] ""', 'msgstr[1] ""'] : ['msgstr ""'];
  return [...lines, ...(context ? [`msgctxt ${JSON.stringify(context)}`] : []), ...ids, ...translations, ''].join('\n');
}

const found = pattern => globSync(pattern, { cwd: HERE }).sort();
found('src/**/*.{ts,tsx}').forEach(readSource);
found('schema/*.json').forEach(file => readSchema(file, JSON.parse(readFileSync(join(HERE, file), 'utf8'))));
const text = [HEADER, ...[...entries.values()].map(written)].join('\n');
if (!process.argv.includes('--check')) {
  writeFileSync(join(HERE, CATALOGUE), text);
} else if (readFileSync(join(HERE, CATALOGUE), 'utf8') !== text) {
  console.error(`${CATALOGUE} is out of date: run npm run translate.`);
  process.exitCode = 1;
}
