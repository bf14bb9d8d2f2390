// The name of a snapshot, and what is to be remembered of it.

import type { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';
import * as React from 'react';

import { isLabel, LONGEST } from '../model/label.ts';

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
        <Label label={value.label} trans={trans} onChange={label => (value.label = label)} />
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

function Label(props: {
  label: string;
  trans: TranslationBundle;
  onChange: (label: string) => void;
}): React.ReactElement {
  const { label, trans, onChange } = props;
  const [isValid, tell] = React.useState(isLabel(label));
  const rule = React.useId();
  return (
    <>
      <label className="avm-field">
        {trans.__('Label')}
        <input
          className="jp-mod-styled"
          maxLength={LONGEST}
          defaultValue={label}
          aria-invalid={!isValid}
          aria-describedby={rule}
          onChange={event => {
            const text = event.target.value.trim();
            tell(isLabel(text));
            onChange(text);
          }}
        />
      </label>
      <p id={rule} className={isValid ? 'avm-faint' : 'avm-warning'}>
        {trans.__(
          'Letters from a to z, digits, dots, underscores and dashes, a letter or a digit first; not twelve hexadecimal digits, as an id has.'
        )}
      </p>
    </>
  );
}
