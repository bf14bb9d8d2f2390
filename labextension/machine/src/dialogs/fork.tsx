// What is to be run in how many forks.

import type { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';
import type { Message } from '@lumino/messaging';
import * as React from 'react';

import type { Forking } from '../api.ts';
import { whole } from './prune.tsx';

const COUNT = 4;

export class ForkForm extends ReactWidget {
  readonly value: Forking;
  private readonly trans: TranslationBundle;

  constructor(code: string, trans: TranslationBundle) {
    super();
    this.trans = trans;
    this.value = { count: COUNT, code, randomness: 'diverge' };
    this.addClass('avm-dialog');
  }

  protected onAfterAttach(msg: Message): void {
    super.onAfterAttach(msg);
    window.addEventListener('keydown', this.keep, true);
  }

  protected onBeforeDetach(msg: Message): void {
    window.removeEventListener('keydown', this.keep, true);
    super.onBeforeDetach(msg);
  }

  /** Enter begins a line; the dialogue, which listens at the document, would swallow it. */
  private readonly keep = (event: KeyboardEvent): void => {
    if (event.key === 'Enter' && event.target instanceof HTMLTextAreaElement) {
      event.stopPropagation();
    }
  };

  render(): React.ReactElement {
    const { trans, value } = this;
    return (
      <>
        <p>
          {trans.__(
            'The code runs in clones of the machine as it is now, each a machine of its own; this one stays as it is.'
          )}
        </p>
        <label className="avm-field">
          {trans.__('How many forks (1 to 64)')}
          <input
            className="jp-mod-styled"
            type="number"
            min={1}
            max={64}
            defaultValue={COUNT}
            onChange={event => (value.count = whole(event.target.value, COUNT, 1, 64))}
          />
        </label>
        <label className="avm-field">
          {trans.__('Random numbers')}
          <select
            className="jp-mod-styled"
            defaultValue="diverge"
            onChange={event => (value.randomness = event.target.value as Forking['randomness'])}
          >
            <option value="diverge">{trans.__('differ between the forks')}</option>
            <option value="common">{trans.__('are the same in all forks')}</option>
          </select>
        </label>
        <label className="avm-field">
          {trans.__('Seconds for each fork (empty: as for cells)')}
          <input
            className="jp-mod-styled"
            type="number"
            min={1}
            max={86_400}
            onChange={event => {
              const seconds = whole(event.target.value, 0, 1, 86_400);
              value.timeout = seconds || undefined;
            }}
          />
        </label>
        <label className="avm-field">
          {trans.__('Code')}
          <textarea
            className="jp-mod-styled avm-code"
            rows={6}
            spellCheck={false}
            defaultValue={value.code}
            onChange={event => (value.code = event.target.value)}
          />
        </label>
      </>
    );
  }
}
