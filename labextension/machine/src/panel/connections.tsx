import * as React from 'react';

import { age, bytes } from '../model/figures.ts';
import { isOneHost } from '../model/hosts.ts';
import { plain } from '../model/plain.ts';
import type { Connection, Network } from '../model/wire.ts';
import { Button } from './button.tsx';
import { useClock, useShared } from './shared.ts';

/** How many connections are shown. */
const SHOWN = 100;
/** A host's name is shown in full before it can be allowed: none is longer. */
const LONGEST = 253;

/** Whom the machine talks to, and what it is refused. */
export const Connections = React.memo(function Connections(props: {
  network: Network | null;
  connections: readonly Connection[];
  doing: string;
}): React.ReactElement {
  const { network, connections, doing } = props;
  const { trans } = useShared().shared;
  const now = useClock(10);
  const newest = [...connections].sort((one, other) => other.id - one.id).slice(0, SHOWN);
  return (
    <>
      {network && <Policy network={network} doing={doing} />}
      {newest.length === 0 ? (
        <p className="avm-faint">{trans.__('The machine has not tried to reach anything.')}</p>
      ) : (
        <ul className="avm-list" tabIndex={0} aria-label={trans.__('Connections, newest first')}>
          {newest.map(one => (
            <Row key={one.id} connection={one} now={now} doing={doing} />
          ))}
        </ul>
      )}
    </>
  );
});

function Policy(props: { network: Network; doing: string }): React.ReactElement {
  const { network, doing } = props;
  const { store, actions, shared } = useShared();
  const { trans } = shared;
  const [host, setHost] = React.useState('');
  const shipped = network.shipped
    ? trans._n('%1 host that is allowed by default', '%1 hosts that are allowed by default', network.shipped)
    : '';
  const own = (hosts: string[]): string => hosts.map(one => plain(one, LONGEST)).join(', ');
  return (
    <>
      <dl className="avm-facts">
        <dt>{trans.__('Mode')}</dt>
        <dd>{network.mode}</dd>
        <dt>{trans.__('Allowed')}</dt>
        <dd>{[own(network.allow), shipped].filter(Boolean).join('; ') || trans.__('nothing')}</dd>
        {network.deny.length > 0 && (
          <>
            <dt>{trans.__('Denied')}</dt>
            <dd>{own(network.deny)}</dd>
          </>
        )}
        <dt>{trans.__('So far')}</dt>
        <dd>{trans.__('%1 let through, %2 refused', network.allowed, network.refused)}</dd>
      </dl>
      <form
        className="avm-line"
        onSubmit={event => {
          event.preventDefault();
          void actions.allow(store, host.trim()).then(() => setHost(''));
        }}
      >
        <input
          className="jp-mod-styled"
          aria-label={trans.__('Host to allow')}
          placeholder={trans.__('host or *.host')}
          maxLength={300}
          value={host}
          onChange={event => setHost(event.target.value)}
        />
        <Button type="submit" disabled={!host.trim() || !!doing}>
          {trans.__('Allow')}
        </Button>
      </form>
    </>
  );
}

function Row(props: { connection: Connection; now: number; doing: string }): React.ReactElement {
  const { connection, now, doing } = props;
  const { store, actions, shared } = useShared();
  const { trans } = shared;
  const { name, verdict, port } = connection;
  const host = plain(name || connection.address, LONGEST);
  const verdicts = { allowed: trans.__('allowed'), refused: trans.__('refused'), failed: trans.__('failed') };
  const isRefused = verdict === 'refused';
  const traffic = trans.__('%1 out, %2 in', bytes(connection.bytes_sent), bytes(connection.bytes_received));
  const what = `${name}:${port}`;
  // A denial of more than this row is about is not taken back by allowing this.
  const isOfMore = isRefused && connection.rule.startsWith('deny ') && connection.rule !== `deny ${what} (session)`;
  const reason = [connection.reason, isOfMore ? connection.hint : ''].filter(Boolean).join(' ');
  const why = isRefused || verdict === 'failed' ? plain(reason, 400) : traffic;
  // What is no plain name would be shown otherwise than it is, or be taken for a pattern.
  const canDecide = isOneHost(name) && !isOfMore;
  return (
    <li className={`avm-connection avm-${verdict}`}>
      <div className="avm-line">
        <span className="avm-guest avm-host">
          {host}:{port}
        </span>
        {connection.count > 1 && <span className="avm-faint">×{connection.count}</span>}
        <span className="avm-verdict">{verdicts[verdict]}</span>
        {canDecide && (
          <Button
            className="avm-small"
            disabled={!!doing}
            aria-label={isRefused ? trans.__('Allow %1', what) : trans.__('Deny %1', what)}
            onClick={() => void (isRefused ? actions.allow(store, what) : actions.deny(store, what))}
          >
            {isRefused ? trans.__('Allow') : trans.__('Deny')}
          </Button>
        )}
      </div>
      <div className="avm-faint">
        {trans.__('%1 ago', age(now - connection.time))} · {why}
        {connection.cell && ` · ${plain(connection.cell, 60)}`}
      </div>
    </li>
  );
}
