# Once, nothing kept
llm openai endpoint "$OPENAI_BASE_URL" --key "$OPENAI_API_KEY" -m "$MODEL" 'What is the capital of Japan?'

# Under a name of its own
llm keys set dedicate --value "$OPENAI_API_KEY"
cat >> "$(dirname "$(llm logs path)")/extra-openai-models.yaml" <<END
- model_id: dedicate
  model_name: $MODEL
  api_base: $OPENAI_BASE_URL
  api_key_name: dedicate
END
llm -m dedicate 'What is the capital of Germany?'
