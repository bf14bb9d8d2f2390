import * as React from 'react';

import { Button } from './button.tsx';
import { useShared } from './shared.ts';

/** What holds for what runs in the machine; each can be changed. */
export const Limits = React.memo(function Limits(props: {
  limits: Record<string, number | null>;
  doing: string;
}): React.ReactElement {
  const { limits, doing } = props;
  const { trans } = useShared().shared;
  const known: [string, string, string][] = [
    ['cell_deadline', trans.__('Time for a cell'), 's'],
    ['lifetime', trans.__('Life of the machine'), 's'],
    ['cpu', trans.__('CPU'), trans.__('cores')],
    ['user_memory_mib', trans.__('Memory'), 'MiB'],
    ['processes', trans.__('Processes'), ''],
    ['open_files', trans.__('Open files'), ''],
    ['disk_mb_per_second', trans.__('Disk'), 'MB/s'],
    ['disk_iops', trans.__('Disk accesses'), '/s'],
    ['output_mib', trans.__('Output of a cell'), 'MiB'],
    ['output_mib_per_second', trans.__('Output'), 'MiB/s']
  ];
  const held = known.filter(([name]) => name in limits);
  return (
    <>
      <p className="avm-faint">{trans.__('An empty field is no limit. They hold for what runs from now on.')}</p>
      {held.map(([name, title, unit]) => (
        <Limit key={name} name={name} title={title} unit={unit} value={limits[name]} doing={doing} />
      ))}
    </>
  );
});

function Limit(props: {
  name: string;
  title: string;
  unit: string;
  value: number | null;
  doing: string;
}): React.ReactElement {
  const { name, title, unit, value, doing } = props;
  const { store, actions, shared } = useShared();
  const { trans } = shared;
  const held = value === null ? '' : String(value);
  const [typed, type] = React.useState<string | null>(null);
  const text = typed ?? held;
  const wish = text.trim() ? Number(text) : null;
  // What is being typed stays, whatever comes meanwhile.
  React.useEffect(() => {
    if (wish === value) {
      type(null);
    }
  }, [held]);
  const isValid = wish === null || (Number.isFinite(wish) && wish > 0);
  return (
    <form
      className="avm-limit"
      onSubmit={event => {
        event.preventDefault();
        void actions.limit(store, name, wish);
      }}
    >
      <label>
        <span>{title}</span>
        <input
          className="jp-mod-styled"
          inputMode="decimal"
          aria-invalid={!isValid}
          placeholder={trans.__('no limit')}
          value={text}
          onChange={event => type(event.target.value)}
        />
        <span className="avm-faint">{unit}</span>
      </label>
      <Button className="avm-small" type="submit" disabled={text.trim() === held || !isValid || !!doing}>
        {trans.__('Set')}
      </Button>
    </form>
  );
}
