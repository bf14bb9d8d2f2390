// The name of a snapshot, and what is to be remembered of it.

import type { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';
import * as React from 'react';

export class SnapshotForm extends ReactWidget {
  readonly value: { label: string; text: string };
  private readonly trans: TranslationBundle;
  private readonly isNew: boolean;

  /** @param label Of a snapshot that is there already; undefined for a new one. */
  constructor(trans: TranslationBundle, label?: string) {
    super();
    this.trans = trans;
    this.isNew = label === undefined;
    this.value = { label: label ?? '', text: '' };
    this.addClass('avm-dialog');
  }

  render(): React.ReactElement {
    const { trans, value } = this;
    return (
      <>
        <label className="avm-field">
          {trans.__('Label')}
          <input
            className="jp-mod-styled"
            maxLength={64}
            defaultValue={value.label}
            onChange={event => (value.label = event.target.value.trim())}
          />
        </label>
        {this.isNew ? (
          <label className="avm-field">
            {trans.__('Remark')}
            <input
              className="jp-mod-styled"
              maxLength={2000}
              onChange={event => (value.text = event.target.value.trim())}
            />
          </label>
        ) : (
          <p className="avm-faint">{trans.__('Without a label a snapshot can be removed by pruning.')}</p>
        )}
      </>
    );
  }
}
