import * as React from 'react';

/** A field for a whole number within bounds; undefined where it holds none. */
export function NumberField(props: {
  title: string;
  least: number;
  most: number;
  initial?: number;
  onChange: (value: number | undefined) => void;
}): React.ReactElement {
  const { title, least, most, initial, onChange } = props;
  return (
    <label className="avm-field">
      {title}
      <input
        className="jp-mod-styled"
        type="number"
        min={least}
        max={most}
        defaultValue={initial}
        onChange={event => onChange(whole(event.target.value, least, most))}
      />
    </label>
  );
}

function whole(text: string, least: number, most: number): number | undefined {
  const number = Math.round(Number(text));
  return text.trim() && Number.isFinite(number) ? Math.min(Math.max(number, least), most) : undefined;
}
