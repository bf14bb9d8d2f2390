// What is to be run in how many forks.

import type { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';
import type { Message } from '@lumino/messaging';
import * as React from 'react';

import type { Forking } from '../api.ts';
import { NumberField } from './number.tsx';

const COUNT = 4;
const MOST = 64;
/** Seconds. */
const LONGEST = 86_400;

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
        <NumberField
          title={trans.__('How many forks (1 to %1)', MOST)}
          least={1}
          most={MOST}
          initial={COUNT}
          onChange={count => (value.count = count ?? COUNT)}
        />
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
        <NumberField
          title={trans.__('Seconds for each fork (empty: as for cells)')}
          least={1}
          most={LONGEST}
          onChange={seconds => (value.timeout = seconds)}
        />
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
