import * as React from 'react';

/** A part of the panel that can be folded away. */
export function Section(props: {
  title: string;
  count?: number;
  /** A count above zero is worth a look. */
  isAlarming?: boolean;
  isClosed?: boolean;
  children: React.ReactNode;
}): React.ReactElement {
  const { title, count, isAlarming, isClosed, children } = props;
  return (
    <details className="avm-section" open={!isClosed}>
      <summary>
        {title}
        {!!count && <span className={`avm-count ${isAlarming ? 'avm-alarming' : ''}`}>{count}</span>}
      </summary>
      <div className="avm-section-body">{children}</div>
    </details>
  );
}
