import * as React from 'react';

/** A button that keeps the focus while it cannot be pressed; one that the browser disables would lose it. */
export function Button(props: React.ButtonHTMLAttributes<HTMLButtonElement>): React.ReactElement {
  const { disabled, onClick, ...rest } = props;
  return (
    <button
      className="jp-mod-styled"
      type="button"
      aria-disabled={disabled || undefined}
      {...rest}
      onClick={event => {
        if (disabled) {
          event.preventDefault(); // it sends no form either
        } else {
          onClick?.(event);
        }
      }}
    />
  );
}
