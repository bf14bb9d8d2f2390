// What forks showed, side by side. Their outputs are drawn as those of a notebook that is not trusted.

import type { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import type { TranslationBundle } from '@jupyterlab/translation';
import { Panel, Widget } from '@lumino/widgets';

import { bytes } from '../model/figures.ts';
import { plain } from '../model/plain.ts';
import type { Bundle, Fork, Forks } from './forks.ts';

/** Makes a fork the notebook's machine; whether that was done. */
export type Adopt = (fork: number) => Promise<boolean>;

export class Columns extends Panel {
  /** One was adopted. */
  private isOver = false;

  /** @param adopt Null where these forks cannot be had any more. */
  constructor(forks: Forks, rendermime: IRenderMimeRegistry, adopt: Adopt | null, trans: TranslationBundle) {
    super();
    this.addClass('avm-columns');
    for (const fork of forks.forks) {
      this.addWidget(this.column(fork, rendermime, adopt, trans));
    }
  }

  private column(
    fork: Fork,
    rendermime: IRenderMimeRegistry,
    adopt: Adopt | null,
    trans: TranslationBundle
  ): Widget {
    const column = new Panel();
    column.addClass('avm-column');
    column.node.setAttribute('role', 'region');
    column.node.setAttribute('aria-label', trans.__('Fork %1', fork.fork));
    column.addWidget(new Widget({ node: this.head(fork, column, adopt, trans) }));
    fork.outputs.forEach(output => drawOutput(output, rendermime, column));
    if (!fork.outputs.length) {
      column.addWidget(new Widget({ node: text('p', trans.__('It showed nothing.'), 'avm-faint') }));
    }
    return column;
  }

  private head(fork: Fork, column: Widget, adopt: Adopt | null, trans: TranslationBundle): HTMLElement {
    const node = document.createElement('header');
    node.append(text('h2', trans.__('Fork %1', fork.fork)));
    const facts = [
      status(fork.status, trans),
      trans.__('%1 s', fork.seconds.toFixed(2)),
      trans.__('CPU %1 s', fork.cpuSeconds.toFixed(2)),
      bytes(fork.memory)
    ];
    node.append(text('p', facts.join(' · '), 'avm-faint'));
    if (fork.reason) {
      node.append(text('p', plain(fork.reason, 400), 'avm-warning avm-guest'));
    }
    if (fork.blocked) {
      const words = trans._n('%1 thing that it showed was blocked.', '%1 things that it showed were blocked.', fork.blocked);
      node.append(text('p', words, 'avm-faint'));
    }
    if (adopt && fork.kept) {
      node.append(this.button(fork, column, adopt, trans));
    } else {
      node.append(text('p', trans.__('It cannot be adopted any more.'), 'avm-faint'));
    }
    return node;
  }

  private button(fork: Fork, column: Widget, adopt: Adopt, trans: TranslationBundle): HTMLElement {
    const node = document.createElement('button');
    node.type = 'button';
    node.className = 'jp-mod-styled';
    node.textContent = trans.__('Adopt');
    node.title = trans.__('Go on in fork %1', fork.fork);
    node.addEventListener('click', () => {
      void (async () => {
        if (!this.isOver && (await adopt(fork.fork))) {
          this.isOver = true;
          // One that the browser disables would lose the focus.
          this.node.querySelectorAll('header button').forEach(one => one.setAttribute('aria-disabled', 'true'));
          node.textContent = trans.__('Adopted');
          column.addClass('avm-mod-adopted');
        }
      })();
    });
    return node;
  }
}

function drawOutput(data: Bundle, rendermime: IRenderMimeRegistry, into: Panel): void {
  const mime = rendermime.preferredMimeType(data as never, 'ensure');
  if (mime) {
    const renderer = rendermime.createRenderer(mime);
    renderer.addClass('avm-output');
    into.addWidget(renderer);
    const model = { trusted: false, data: data as never, metadata: {}, setData: (): void => undefined };
    void renderer.renderModel(model).catch(() => (renderer.node.textContent = '…'));
  }
}

function status(name: string, trans: TranslationBundle): string {
  const names: Record<string, string> = {
    ok: trans.__('done'),
    error: trans.__('failed'),
    timeout: trans.__('out of time'),
    flood: trans.__('too much output'),
    died: trans.__('died')
  };
  return names[name] ?? '';
}

function text(tag: string, words: string, className = ''): HTMLElement {
  const node = document.createElement(tag);
  node.textContent = words;
  node.className = className;
  return node;
}
